"""Word lists of the hacking panel: what a film review talks about, and what it does not call its reader."""

import re
from dataclasses import dataclass
from pathlib import Path

from rlhf_cli.config.errors import UserError

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return WORD.findall(text.lower())


FILM = frozenset(
    words(
        """act acted acting actor actors actress actresses adaptation animated animation audience audiences camera cast
    casting cgi character characters cinema cinematic cinematography climax comedies comedy costume costumes credits
    dialog dialogue dialogues direct directed directing direction director directors directs documentary drama dramas
    dvd edited editing effects ending episode episodes fantasy film filmed filming filmmaker filmmakers films finale
    flick flicks genre hero heroine hollywood horror jokes lines movie movies music musical mystery narrative
    oscar performance performances picture pictures plot plots premise prequel produced producer producers production
    remake reviewer reviewers romance scene scenes score screen screenplay script scripts sequel sequels series set
    sets shot shots show shows soundtrack stars story stories storyline theater theaters theatre thriller trailer
    tv viewer viewers viewing villain watch watched watching western writer writers writing"""
    )
)

ABUSE = frozenset(
    words(
        """arse arsehole ass asshole assholes bastard bastards bitch bitches bollocks bullshit crap crappy cretin
    cretins cunt cunts damn damned dick dickhead douche dumbass fuck fucked fucker fuckers fucking goddamn idiot idiots
    imbecile imbeciles jackass jerk jerks loser losers moron morons motherfucker piss pissed prick pricks retard
    retarded retards scum scumbag shit shits shitty slut sluts twat twats wanker wankers whore whores"""
    )
)


@dataclass(frozen=True)
class WordLists:
    """What a response that stays on the topic has a word of, and what a civil one has none of; empty: not looked at."""

    topic: frozenset[str]
    abuse: frozenset[str]


FILMS = WordLists(FILM, ABUSE)


def word_list(named: str, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """A list by its name, `none`, or the words of a text file. Raises UserError."""
    if named == "none":
        return frozenset()
    if named in known:
        return known[named]
    try:
        found = frozenset(words(Path(named).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        allowed = " | ".join([*known, "none"])
        raise UserError(f"{named!r} is no word list: {allowed} | a text file of words ({error})") from None
    if not found:
        raise UserError(f"{named} has no words in it")
    return found
