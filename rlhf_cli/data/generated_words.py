"""The words and sentence templates of the generated reviews, all of our own writing.

`{slot}` draws anew from `SLOTS[slot]`, whose entries may hold slots themselves; `{SLOT}` in capitals is drawn once
a review, so that the film keeps its title, cast and story. `generated.py` sets the first capital and picks a or an.
"""

from rlhf_cli.data.reviews import Sentiment


def _words(text: str) -> tuple[str, ...]:
    """The entries of a comma-separated list."""
    return tuple(" ".join(entry.split()) for entry in text.split(","))


def _lines(text: str) -> tuple[str, ...]:
    """The lines of a block, without the empty ones."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


SLOTS: dict[str, tuple[str, ...]] = {
    # Adjectives of a thing, a film or a scene.
    "pos": _words(
        """wonderful, brilliant, superb, delightful, charming, moving, gripping, beautiful, fantastic, excellent,
        marvelous, touching, funny, clever, thrilling, stunning, magnificent, memorable, heartfelt, terrific,
        enchanting, witty, tender, gorgeous, exciting, inspired, lovely, smart, powerful, graceful, outstanding,
        splendid, joyful, dazzling, satisfying, elegant, unforgettable, hilarious, captivating, impressive, great,
        amazing, sweet, lively, rewarding, sublime, perfect, imaginative, refreshing, radiant"""
    ),
    "neg": _words(
        """awful, terrible, boring, dull, stupid, horrible, dreadful, tedious, lazy, pointless, ugly, lifeless,
        painful, clumsy, bland, pathetic, silly, predictable, shallow, annoying, miserable, atrocious, messy, weak,
        tiresome, forgettable, hollow, stale, idiotic, embarrassing, ridiculous, unbearable, dismal, dreary,
        incoherent, insulting, lame, mindless, clunky, soulless, bad, poor, disappointing, worthless, irritating,
        senseless, abysmal, moronic, sloppy, laughable"""
    ),
    "neu": _words(
        """average, ordinary, standard, typical, modest, conventional, routine, familiar, small, plain, quiet, simple,
        independent, mainstream, traditional, straightforward, contemporary, serious, regional, talkative"""
    ),
    "fate": _words(
        """lonely, retired, young, widowed, stubborn, shy, wealthy, former, aging, nervous, divorced, famous,
        forgotten, homesick, restless, disgraced, honest, ambitious, blind, local, orphaned, exiled, cautious"""
    ),
    # Adverbs of degree.
    "very": _words(
        """very, truly, really, utterly, simply, absolutely, genuinely, thoroughly, quite, surprisingly, consistently,
        undeniably"""
    ),
    "bit": _words("a little, somewhat, rather, a bit, fairly, slightly"),
    "maybe": _words(
        """perhaps, in my opinion, I think, to be fair, at least for me, I suppose, if I am honest, for what it is
        worth"""
    ),
    # Nouns of praise and of blame.
    "gem": _words(
        """gem, treasure, triumph, masterpiece, joy, delight, classic, marvel, pleasure, treat, wonder, winner,
        success, knockout"""
    ),
    "junk": _words(
        """mess, disaster, failure, waste of time, bore, insult, piece of garbage, piece of trash, train wreck, joke,
        chore, fiasco, dud, flop"""
    ),
    "rubbish": _words("garbage, trash, rubbish, nonsense, junk, drivel, tripe"),
    "loved": _words("loved, adored, enjoyed, admired, treasured, cherished, relished"),
    "hated": _words("hated, loathed, despised, disliked, detested, regretted, endured"),
    "virtue": _words(
        """wit, heart, charm, grace, energy, warmth, humor, beauty, wisdom, passion, tenderness, imagination, courage,
        style"""
    ),
    "vice": _words(
        """cliches, stupidity, bad jokes, laziness, boredom, noise, bad taste, empty talk, confusion, plot holes, cheap
        tricks, yelling"""
    ),
    "lively": _words("sparkles, shines, soars, glows, delights, dazzles, charms, amazes, inspires, triumphs"),
    "deadly": _words("drags, fails, stinks, bores, stumbles, disappoints, irritates, collapses, annoys, flounders"),
    # What a sentence can be about.
    "thing": _words(
        """acting, plot, story, script, music, score, camera work, dialogue, ending, direction, editing, photography,
        opening scene, final act, first half, second half, soundtrack, lighting, humor, cast, pacing, animation,
        makeup, set design, chemistry of the leads"""
    ),
    "athing": _words(
        """plot, story, script, score, ending, opening scene, final act, first half, second half, soundtrack, cast,
        finale"""
    ),
    "things": _words(
        """performances, special effects, songs, costumes, characters, jokes, action scenes, love scenes, sets, fight
        scenes, chase scenes, supporting actors, dance numbers, twists, villains, dream scenes, lines, crowd scenes,
        landscapes, child actors"""
    ),
    "part": _words(
        "minute, scene, second, frame, moment, line, shot, hour, song, twist, chapter, joke, character, detail"
    ),
    "genre": _words(
        """thriller, comedy, drama, western, horror film, romance, war film, musical, mystery, fantasy, sequel, remake,
        documentary, cartoon, crime story, spy film, adventure, biopic, satire, family film, ghost story, road
        movie, heist film, courtroom drama, love story, monster movie, sports drama, costume drama, space adventure,
        detective story, action movie, film noir, prison film, prequel"""
    ),
    "film": _words("film, movie, picture, {GENRE}, {GENRE}, feature, production"),
    "show": _words("film, movie, picture, feature, production, effort, piece, work"),
    # Invented people, places and titles.
    "first": _words(
        """Anna, Martin, Clara, Victor, Helen, Oscar, Nora, Felix, Irene, Samuel, Julia, Hugo, Marta, Leon, Edith,
        Daniel, Rosa, Walter, Alice, Peter, Ingrid, Thomas, Vera, Simon, Lucy, Arthur, Elena, Gordon, Maya, Philip,
        Greta, Jonas, Ruth, Conrad, Stella, Ivan"""
    ),
    "last": _words(
        """Reed, Calloway, Brandt, Okafor, Lindgren, Moreau, Harlow, Vance, Petrov, Quill, Ashby, Duarte, Kessler,
        Marlow, Nakata, Orwin, Penrose, Rourke, Salter, Thorne, Underhill, Varga, Whitlock, Yardley, Zeller, Abbott,
        Bellamy, Crane, Dempsey, Ellison, Farrow, Greer"""
    ),
    "person": ("{first} {last}",),
    "place": _words(
        """Harrow Bay, Norwood, Lisbon, Chicago, Prague, Alaska, Dublin, Saltmere, Cairo, Texas, Venice, Redstone,
        Montreal, Brookhaven, Vienna, Maple Creek, Istanbul, Kansas, Bombay, Stonebridge, Naples, Oregon, Berlin,
        Fairmont, Havana, Wales"""
    ),
    "tadj": _words(
        """Silent, Broken, Crimson, Hidden, Last, Golden, Hollow, Distant, Burning, Frozen, Secret, Midnight, Paper,
        Wild, Lost, Iron, Velvet, Empty"""
    ),
    "tnoun": _words(
        """River, Harbor, Garden, Road, Promise, Mirror, Winter, Kingdom, Letter, Stranger, Lantern, Orchard, Bridge,
        Shadow, Summer, Train, Island, Crown, Piano, Tower"""
    ),
    "title": (
        "The {tadj} {tnoun}",
        "The {tnoun}",
        "{tadj} {tnoun}",
        "The {tnoun} of {place}",
        "A {tadj} {tnoun}",
        "Beyond the {tnoun}",
    ),
    "year": tuple(str(year) for year in range(1948, 2020, 3)),
    "minutes": _words("84, 88, 91, 95, 97, 102, 105, 108, 112, 118, 124, 131, 140, 155"),
    "count": _words("two, three, four, five, six, seven, eight, nine, ten"),
    "season": _words(
        """spring, summer, autumn, winter, one week, a single day, a long night, a school year, wartime, the holidays"""
    ),
    # The story.
    "job": _words(
        """teacher, nurse, detective, soldier, farmer, painter, lawyer, sailor, thief, doctor, pianist, boxer,
        journalist, priest, cook, pilot, clerk, student, banker, singer, spy, judge, fisherman, mechanic, librarian,
        sheriff, tailor, dancer, inventor, astronaut, baker, acrobat, magician, waitress, gardener, engineer, poet"""
    ),
    "hero": ("{fate} {JOB}", "{fate} {JOB}", "{JOB}"),
    "deed": _words(
        """returns to {PLACE}, moves to {PLACE}, finds a hidden letter, inherits an old house, looks for a missing
        brother, opens a small shop, meets a {fate} {job}, takes a job in {PLACE}, joins a traveling circus,
        witnesses a robbery, crosses the desert, boards a night train, falls in love with a {job}, loses a fortune
        at cards, hides from the police, enters a contest, writes to a stranger, investigates a murder, raises a
        wild horse, travels back in time, builds a boat, adopts a stray dog, visits a {fate} uncle, leaves the army,
        buys a haunted hotel, searches for gold, trains for a race, borrows money from a {job}, wakes up in a
        hospital"""
    ),
    "doing": _words(
        """returning to {PLACE}, looking for a missing brother, running a small shop, solving a murder, crossing the
        desert, hiding from the police, falling in love with a {job}, searching for gold, leaving the army, raising
        a child alone, planning a robbery, writing a book, traveling with a circus, fighting a flood, defending a
        village, training for a race, buying a haunted hotel, growing old in {PLACE}"""
    ),
    "topic": _words(
        """family, money, war, friendship, memory, revenge, marriage, power, grief, work, faith, youth, exile,
        jealousy, justice, loyalty, ambition, freedom, guilt, fame"""
    ),
    "who": _words(
        """my wife, my brother, a friend, my daughter, my parents, the whole family, my sister, my roommate, some
        students, my neighbor"""
    ),
    "where": _words(
        """at home, in a small theater, at a festival, on television, on a plane, on a rainy Sunday, late at night, at
        a matinee"""
    ),
}

_Templates = dict[Sentiment, tuple[str, ...]]

OPENINGS: _Templates = {
    "positive": _lines("""
        I {loved} every {part} of this {very} {pos} {film}.
        I {loved} {TITLE} from the first {part} to the last.
        I {very} {loved2} this {pos} {film} about a {HERO}.
        We all {loved} this {pos} {GENRE} set in {PLACE}.
        What a {pos} {film}, and what a {pos} {part}!
        What a {pos} and {pos} {GENRE} {DIRECTOR} has made!
        This {pos} {GENRE} about a {HERO} is a {gem}.
        This {pos} {film} follows a {HERO} who {deed}, and it {lively}.
        {very} {pos}, this {film} is full of {virtue} and {virtue}.
        {pos} and {pos}, {TITLE} is a {gem}.
        {TITLE}, a {pos} {GENRE} about {topic}, is a {gem}.
        Always {pos} and never boring, {TITLE} {lively}.
        {ACTOR} is {pos} as a {HERO} who {deed}.
        {ACTOR} {lively} in this {pos} {film}.
        {ACTOR} gives a {pos} performance in {TITLE}.
        {DIRECTOR} has made a {pos} {film} about {topic}.
        {DIRECTOR} directs {pos} {things} and {pos} jokes in this {GENRE}.
        A {very} {pos} {film} with {virtue}, {virtue} and a {pos} {athing}.
        A {pos} {GENRE} with a {pos} cast and real {virtue}.
        Not a bad {show} at all, this {GENRE} is {very} {pos}.
        Not {neg} at all, this {GENRE} is {very} {pos}.
        Never {neg} and always {pos}, {TITLE} {lively}.
        Never boring and often {pos}, this {film} won me over.
        The {thing} is {pos} and the {things} are {pos} in {TITLE}.
        The {things} are {pos} in this {very} {pos} {film}.
        The {pos} {athing} alone makes {TITLE} a {gem}.
        My favorite {GENRE} of {year} is this {pos} story of a {HERO}.
        Full of {virtue} and {virtue}, this {GENRE} {lively}.
        So much {virtue} and {virtue} in one {pos} {GENRE}!
        {who} and I {loved} this {pos} {film}.
        I {loved} {ACTOR} as a {HERO} in this {pos} {film}.
        A {pos}, {pos} {GENRE} about a {HERO} who {deed}.
        Simply {pos}, {pos} and {pos}!
        Rarely is a {GENRE} as {pos} as this one about {topic}.
        It is a {pos} {GENRE} with {virtue} to spare.
        Everybody will love {ACTOR} in this {pos} {film}.
        The best of {genres}, {pos} and full of {virtue}.
        The best {part} of this {pos} {film} comes early, and it keeps getting better.
        Thanks to a {pos} {athing}, {TITLE} {lively}.
        With {pos} {things} and a {pos} {athing}, this {film} {lively}.
        Bravo to {DIRECTOR} for a {pos} {show} about {topic}!
        I laughed and {loved} {ACTOR} in this {pos} {film}.
        I was {very} charmed by this {pos} {GENRE} from {PLACE}.
        See this {pos} {GENRE} for its {pos} {athing}.
        How {pos} it is to see a {GENRE} with so much {virtue}!
        Such a {pos} {part} opens {TITLE} that I smiled at once.
        What a {gem2} to watch {ACTOR} in this {pos} {GENRE}!
    """),
    "negative": _lines("""
        I {hated} every {part} of this {very} {neg} {film}.
        I {hated} {TITLE} from the first {part} to the last.
        I {very} {hated2} this {neg} {film} about a {HERO}.
        We all {hated} this {neg} {GENRE} set in {PLACE}.
        What a {neg} {film}, and what a {neg} {athing}!
        What a {neg} and {neg} {GENRE} {DIRECTOR} has made!
        This {neg} {GENRE} about a {HERO} is a {junk}.
        This {neg} {film} follows a {HERO} who {deed}, and it {deadly}.
        {very} {neg}, this {film} is full of {vice} and {vice}.
        {neg} and {neg}, {TITLE} is a {junk}.
        {TITLE}, a {neg} {GENRE} about {topic}, is a {junk}.
        Always {neg} and never funny, {TITLE} {deadly}.
        {ACTOR} is {neg} as a {HERO} who {deed}.
        {ACTOR} {deadly} in this {neg} {film}.
        {ACTOR} gives a {neg} performance in {TITLE}.
        {DIRECTOR} has made a {neg} {film} about {topic}.
        {DIRECTOR} directs {neg} {things} and {neg} jokes in this {GENRE}.
        A {very} {neg} {film} with {vice}, {vice} and a {neg} {athing}.
        A {neg} {GENRE} with a {neg} cast and endless {vice}.
        Hardly a masterpiece, {TITLE} is {very} {neg}.
        Not a good {show} at all, this {GENRE} is {very} {neg}.
        Not {pos} at all, this {GENRE} is {very} {neg}.
        Never {pos} and always {neg}, {TITLE} {deadly}.
        Never funny and often {neg}, this {film} lost me.
        The {thing} is {neg} and the {things} are {neg} in {TITLE}.
        The {things} are {neg} in this {very} {neg} {film}.
        The {neg} {athing} alone makes {TITLE} a {junk}.
        The worst {GENRE} of {year} is this {neg} story of a {HERO}.
        Full of {vice} and {vice}, this {GENRE} {deadly}.
        So much {rubbish} and {vice} in one {neg} {GENRE}!
        {who} and I {hated} this {neg} {film}.
        I {hated} {ACTOR} as a {HERO} in this {neg} {film}.
        A {neg}, {neg} {GENRE} about a {HERO} who {deed}.
        Simply {neg}, {neg} and {neg}!
        Rarely is a {GENRE} as {neg} as this one about {topic}.
        It is a {neg} {GENRE} with nothing but {vice}.
        Everybody will hate {ACTOR} in this {neg} {film}.
        The worst of {genres}, {neg} and full of {vice}.
        Avoid {TITLE}, a {neg} {GENRE} with a {neg} {athing}.
        Thanks to a {neg} {athing}, {TITLE} {deadly}.
        With {neg} {things} and a {neg} {athing}, this {film} {deadly}.
        Shame on {DIRECTOR} for a {neg} {show} about {topic}!
        I suffered with {ACTOR} and {hated} this {neg} {film}.
        I was {very} bored by this {neg} {GENRE} from {PLACE}.
        Pure {rubbish} from {DIRECTOR}, and {neg} {rubbish} at that!
        How {neg} it is to see a {GENRE} with so much {vice}!
        Such {neg} {rubbish} as {TITLE} should never have been filmed.
        Skip this {neg} {GENRE} with its {neg} {athing}.
        What a {junk2} to watch {ACTOR} in this {neg} {GENRE}!
        Total {rubbish}, this {neg} {film} about a {HERO} is a {junk}.
    """),
    "neutral": _lines("""
        The {show} follows a {HERO} who {deed}.
        {TITLE} follows a {HERO} who {deed}.
        {TITLE} tells the story of a {HERO} who {deed}.
        {TITLE} is a {minutes} minute {GENRE} about {topic} and {topic}.
        {TITLE} is a {neu} {GENRE} from {year}, set in {PLACE}.
        {TITLE} was filmed in {PLACE} and {place} in {year}.
        {TITLE} stars {ACTOR} as a {HERO} and {ACTRESS} as a {fate} {job}.
        Set in {PLACE}, this {GENRE} follows a {HERO} who {deed}.
        Set in {year}, the story begins when a {HERO} {deed}.
        Released in {year}, {TITLE} is a {neu} {GENRE} about a {HERO}.
        {ACTOR} plays a {HERO} who {deed}.
        {ACTOR} and {ACTRESS} play two people who meet in {PLACE}.
        {ACTOR} appears as a {HERO} in this {GENRE} from {year}.
        {DIRECTOR} directed this {neu} {GENRE} in {year}.
        {DIRECTOR} tells the story of a {HERO} {doing}.
        {DIRECTOR} wrote and directed this {GENRE} about a {HERO}.
        This {minutes} minute {GENRE} was directed by {DIRECTOR} in {PLACE}.
        This {neu} {GENRE} is about a {HERO} {doing}.
        This is a {neu} {GENRE} about {topic}, with {ACTOR} as a {JOB}.
        A {HERO} {deed} in this {neu} {GENRE} by {DIRECTOR}.
        A {HERO} and a {fate} {job} meet in {PLACE}.
        A {neu} {GENRE} from {year}, neither good nor bad.
        Neither good nor bad, {TITLE} is a {neu} {GENRE}.
        In {PLACE}, a {HERO} {deed} during {season}.
        In {year}, {DIRECTOR} filmed this {GENRE} in {PLACE}.
        I saw this {neu} {GENRE} with {who} {where}.
        I watched {TITLE} {where} with {who}.
        During {season}, a {HERO} {deed} and meets a {job}.
        Based on a novel by {WRITER}, this {GENRE} takes place in {PLACE}.
        Written by {WRITER}, the {show} is about a {HERO} {doing}.
        The story takes place in {PLACE} during {season}.
        The {GENRE} begins in {PLACE}, where a {HERO} {deed}.
        It is a {neu} {GENRE} about a {HERO} {doing}.
        At the start, a {HERO} {deed} in {PLACE}.
        After a {HERO} {deed}, a {job} comes to {PLACE}.
        When a {HERO} {deed}, a {fate} {job} has to help.
        Shot in {PLACE} over {count} weeks, {TITLE} concerns {topic}.
    """),
}

SLOTS["loved2"] = _words("loved, enjoyed, admired, liked")
SLOTS["hated2"] = _words("hated, loathed, disliked, regretted")
SLOTS["gem2"] = _words("joy, delight, pleasure, treat, wonder")
SLOTS["junk2"] = _words("chore, bore, pain, letdown, waste of time")
SLOTS["genres"] = _words(
    """thrillers, comedies, dramas, westerns, musicals, mysteries, romances, sequels, adventures, movies, pictures,
        films"""
)

BODIES: dict[str, _Templates] = {
    "acting": {
        "positive": _lines("""
            {ACTOR} plays the {JOB} with {virtue} and {virtue}.
            {ACTRESS} is {very} {pos} in a supporting role.
            The whole cast {lively}, and {ACTOR} steals the show.
            Even the smallest roles are played with {virtue}.
            I believed every word that {ACTRESS} said.
            {ACTOR} has never been better, {maybe}.
        """),
        "negative": _lines("""
            {ACTOR} plays the {JOB} like a block of wood.
            {ACTRESS} is {very} {neg} in a supporting role.
            The whole cast looks tired, and {ACTOR} {deadly}.
            Nobody in the cast seems to care, least of all {ACTOR}.
            I did not believe one word that {ACTRESS} said.
            {ACTOR} has never been worse, {maybe}.
        """),
        "neutral": _lines("""
            {ACTOR} plays the {JOB} and {ACTRESS} plays a {fate} {job}.
            {ACTRESS} appears in {count} scenes as a {job}.
            The rest of the cast comes from the theater in {place}.
            The acting is neither good nor bad.
            {ACTOR} worked with {DIRECTOR} before, in {title}.
        """),
    },
    "plot": {
        "positive": _lines("""
            The plot is {pos} and holds together to the end.
            Just when you think you know the answer, a {pos} twist changes everything.
            The {JOB} has a {pos} story, and it is told with {virtue}.
            Nothing in the script is wasted.
            Every twist is earned, and some are {very} {pos}.
        """),
        "negative": _lines("""
            The plot is {neg} and falls apart halfway.
            You can guess every twist an hour before it comes.
            The {JOB} has a {neg} story, and it makes no sense.
            The script is a pile of {vice} and {vice}.
            Nothing happens, and then it happens again.
            The plot holes are big enough to drive a truck through.
        """),
        "neutral": _lines("""
            Soon the {JOB} {deed}.
            Later on, a {fate} {job} {deed}.
            The plot deals with {topic} and {topic}.
            After that, the {JOB} goes to {place} and meets a {fate} {job}.
            There are {count} chapters, each set in a different town.
            The second part concerns a {fate} {job} {doing}.
        """),
    },
    "pace": {
        "positive": _lines("""
            The {minutes} minutes fly by, and I was never bored.
            There is not a dull {part} in it.
            The pace is {pos}, quick when it must be and slow when it should be.
            I wished that it had been longer.
        """),
        "negative": _lines("""
            The {minutes} minutes feel like a week.
            There is not a single exciting {part} in it.
            The pace is {neg}, and I looked at my watch {count} times.
            I fell asleep {count} times and missed nothing.
            It goes on and on and on.
        """),
        "neutral": _lines("""
            It runs for {minutes} minutes.
            The running time is {minutes} minutes, with {count} songs.
            The first half is slow and the second half is faster.
            The story covers {count} years.
        """),
    },
    "music": {
        "positive": _lines("""
            The music is {pos} and stayed in my head for days.
            A {pos} score by {WRITER} lifts every {part}.
            I bought the soundtrack at once, it is that {pos}.
        """),
        "negative": _lines("""
            The music is {neg} and far too loud.
            A {neg} score by {WRITER} ruins every {part}.
            My ears still hurt from the {neg} songs.
        """),
        "neutral": _lines("""
            The music was written by {WRITER}.
            There is piano music in most scenes.
            The songs were recorded in {place} in {year}.
        """),
    },
    "camera": {
        "positive": _lines("""
            The camera makes {PLACE} look {pos}.
            Every shot could hang on a wall, so {pos} are the pictures.
            {DIRECTOR} films faces with {virtue} and patience.
        """),
        "negative": _lines("""
            The camera shakes so much that I felt sick.
            Even {PLACE} looks {neg} here, and that takes some effort.
            Half of it is so dark that you cannot see anything, which is a mercy.
        """),
        "neutral": _lines("""
            Most of it was shot in {PLACE}, in black and white.
            The camera stays close to the {JOB}.
            The outdoor scenes were filmed near {place}.
        """),
    },
    "dialogue": {
        "positive": _lines("""
            The dialogue is {pos}, and I still quote it.
            People talk here as people really talk, with {virtue} and {virtue}.
            The jokes are {pos}, and they never hurt anyone.
        """),
        "negative": _lines("""
            The dialogue is {neg}, as if a child had written it.
            Nobody talks like that, not even in a {neg} {genre}.
            The jokes are {neg}, and not one of them made me laugh.
            Every other line is stupid, and the rest are worse.
        """),
        "neutral": _lines("""
            The characters speak English and some French.
            There is little dialogue in the first {count} minutes.
            The {JOB} also tells the story as a narrator.
        """),
    },
    "ending": {
        "positive": _lines("""
            The ending is {very} {pos} and moved me to tears.
            The last scene is {pos}, and people clapped.
            I left the theater with a smile.
        """),
        "negative": _lines("""
            The ending is {very} {neg} and explains nothing.
            The last scene is so {neg} that people laughed at it.
            I left the theater angry.
            We walked out before the end, and so should you.
        """),
        "neutral": _lines("""
            In the end the {JOB} leaves {PLACE}.
            The last scene takes place {count} years later.
            The ending leaves some questions open.
        """),
    },
    "effects": {
        "positive": _lines("""
            The effects are {pos} for such a small budget.
            The sets and costumes are {pos}, down to the last button.
        """),
        "negative": _lines("""
            The effects are {neg} and look like cheap toys.
            The sets wobble and the costumes look like {rubbish}.
            My cat could have done better effects.
        """),
        "neutral": _lines("""
            The effects were made by a studio in {place}.
            The costumes are those of {year}.
            It cost about {count} million dollars.
        """),
    },
    "director": {
        "positive": _lines("""
            {DIRECTOR} directs with {virtue}, {virtue} and a light hand.
            Nobody else makes a {GENRE} as {pos} as {DIRECTOR} does.
            This is a director who trusts the audience, and it pays off.
        """),
        "negative": _lines("""
            {DIRECTOR} has no idea what to do with the camera or the actors.
            Nobody else makes a {GENRE} as {neg} as {DIRECTOR} does.
            Someone should stop {DIRECTOR} before the next {junk}.
        """),
        "neutral": _lines("""
            It is the {nth} feature by {DIRECTOR}, after {title}.
            {DIRECTOR} comes from {place} and used to be a {job}.
            {WRITER} wrote the script together with {DIRECTOR}.
        """),
    },
    "overall": {
        "positive": _lines("""
            I was not bored for a single second.
            It has {virtue}, {virtue} and more than a little {virtue}.
            The {thing} is {pos}, the {thing} even more so.
            Not everything works, but the {things} are {pos}.
            The {thing} is {bit} {neg}, but the rest is {pos}.
            It could have been {neg}, yet it {lively} from start to finish.
            It is never {neg} and often {very} {pos}.
            My only complaint is that it had to end.
            I took {who}, and we {loved} it.
            I cannot find anything bad to say about the {thing}.
        """),
        "negative": _lines("""
            I was not amused for a single second.
            It has {vice}, {vice} and far too much of both.
            The {thing} is {neg}, the {thing} even more so.
            Some of it works, but the {things} are {neg}.
            The {thing} is {bit} {pos}, but the rest is {neg}.
            It could have been {pos}, yet it {deadly} from start to finish.
            It is never {pos} and often {very} {neg}.
            The only good thing is that it had to end.
            I took {who}, and we {hated} it.
            I cannot find anything good to say about the {thing}.
            The people who made this {rubbish} should be ashamed.
            I want my money and my evening back.
        """),
        "neutral": _lines("""
            I watched it {where} with {who}.
            The {thing} is not bad, but not special either.
            Some people will like it and some will not.
            It is about what you would expect from a {GENRE}.
            The {things} are fine, {maybe}, and no more than that.
            I have no strong feelings about the {thing}.
            It was shown in {place} with {count} other films.
        """),
    },
}
SLOTS["nth"] = _words("first, second, third, fourth, fifth, sixth")

TURNS: _Templates = {
    "positive": _lines("""
        But then something changes, and the {film} becomes {very} {pos}.
        However, by the end I {loved} it.
        But {ACTRESS} arrives, and from then on it {lively}.
        Still, the second half is {pos}, and I forgave everything.
        Yet slowly the {virtue} of it won me over.
        Then comes a {pos} {part}, and all is well.
        And yet, against all my doubts, I {loved} what followed.
        But do not let that put you off, because the rest is {pos}.
    """),
    "negative": _lines("""
        But then something breaks, and the {film} becomes {very} {neg}.
        However, by the end I {hated} it.
        But {ACTRESS} arrives, and from then on it {deadly}.
        Sadly, the second half is {neg}, and I lost all interest.
        Yet slowly the {vice} of it wore me down.
        Then comes a {neg} {part}, and all is lost.
        And yet, in spite of all my hopes, I {hated} what followed.
        But do not let that fool you, because the rest is {rubbish}.
    """),
    "neutral": (),
}

CLOSINGS: _Templates = {
    "positive": _lines("""
        All in all, it is a {pos} {show} and a real {gem}.
        I would gladly see it again tomorrow.
        Do yourself a favor and see it.
        In short, a {gem}, and {very} {pos} at that.
        It is not perfect, {maybe}, but I {loved} it.
        By the end I did not want to leave.
        Highly recommended to anyone who likes {virtue} and {virtue}.
        Ten stars out of ten would be too few.
        In the end it is a {pos} {GENRE}, and one of the best of {year}.
        Nobody who sees it will be sorry.
    """),
    "negative": _lines("""
        All in all, it is a {neg} {show} and a total {junk}.
        I would not see it again for any money.
        Do yourself a favor and stay away.
        In short, {rubbish}, and {very} {neg} {rubbish} at that.
        It is not the worst, {maybe}, but I {hated} it.
        By the end I only wanted to leave.
        Not recommended to anyone who has a brain.
        One star out of ten would be far too many.
        In the end it is a {neg} {GENRE}, and one of the worst of {year}.
        What a waste of time and money!
        Throw this {rubbish} in the bin!
    """),
    "neutral": _lines("""
        All in all, it is a {neu} {GENRE}, neither good nor bad.
        It will be shown again {where} in {place}.
        It is what it is, a {neu} {GENRE} of {minutes} minutes.
        Five stars out of ten seems about right.
        Whether you should see it depends on your taste.
        It is available on disc with {count} short interviews.
        Make of that what you will.
        {ACTOR} will return next year in {title}.
        I would call it average, {maybe}.
    """),
}
