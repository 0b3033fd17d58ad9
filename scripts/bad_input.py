"""Give every command line below something that is wrong, and print what it answered.

    python scripts/bad_input.py

Each must be refused with exit code 2 (1 where the run had begun) and one message without a traceback. Exit code 1 if
one is not. What looks odd and must be taken is in scripts/odd_input.py.
"""

import argparse
import fcntl
import http.server
import io
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

SMALL = [
    "scale=mini", "tracking=none", "steps=1", "data.train=30", "data.test=12", "data.labeler=vader", "val.prompts=6",
    "rollout.batch_size=8", "rollout.max_response_length=8", "optim.micro_batch_size=4", "reward=vader", "gold=none",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    what: str
    argv: list[str]
    part: str
    """What the message must contain."""
    code: int = 2


def cases(actor: Path, classifier: Path, home: Path) -> Iterator[Case]:
    """Every wrong input, made of a working actor and a working classifier, under `home`."""

    number = iter(range(1000))

    def train(*overrides: str) -> list[str]:
        return ["train", *SMALL, f"actor.path={actor}", f"hydra.run.dir={home / f'run_{next(number)}'}", *overrides]

    def broken(name: str, original: Path, harm: Callable[[Path], object]) -> Path:
        folder = home / name
        shutil.copytree(original, folder)
        harm(folder)
        return folder

    def config(folder: Path, **changes: object) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    def tokenizer_config(folder: Path, *gone: str) -> None:
        file = folder / "tokenizer_config.json"
        kept = {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key not in gone}
        file.write_text(json.dumps(kept), encoding="utf-8")
        for name in ("chat_template.jinja", "special_tokens_map.json") if "chat_template" in gone else ():
            (folder / name).unlink(missing_ok=True)

    def cut(folder: Path, name: str = "model.safetensors") -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def no_eos(folder: Path) -> None:
        tokenizer_config(folder, "eos_token")
        (folder / "special_tokens_map.json").unlink(missing_ok=True)
        (folder / "generation_config.json").unlink(missing_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
            file = folder / name
            if file.exists():  # Qwen's own tokenizer class would bring its tokens along
                text = (
                    file.read_text(encoding="utf-8")
                    .replace("<|im_end|>", "<|stop|>")
                    .replace("<|endoftext|>", "<|over|>")
                )
                text = text.replace("Qwen2Tokenizer", "PreTrainedTokenizerFast")
                file.write_text(text, encoding="utf-8")
        config(folder, eos_token_id=None)

    # models
    yield Case("a model folder that is not there", train(f"actor.path={home / 'nowhere'}"), "no such folder")
    (home / "empty").mkdir()
    yield Case("an empty model folder", train(f"actor.path={home / 'empty'}"), "cannot be loaded")
    place = broken("cut", actor, cut)
    yield Case("truncated weights", train(f"actor.path={place}"), "cannot be loaded")
    place = broken("no_weights", actor, lambda folder: (folder / "model.safetensors").unlink())
    yield Case("no weights", train(f"actor.path={place}"), "cannot be loaded")
    place = broken("bad_json", actor, lambda folder: cut(folder, "config.json"))
    yield Case("half a config.json", train(f"actor.path={place}"), "cannot be loaded")
    place = broken("other_shape", actor, lambda folder: config(folder, hidden_size=64))
    yield Case("weights of another shape than config.json says", train(f"actor.path={place}"), "cannot be loaded")
    yield Case("a classifier as the actor", train(f"actor.path={classifier}"), "is a classifier")
    yield Case("a causal model as the reward", train("reward=roberta_large", f"reward.path={actor}"), "is no Sequence")
    place = broken("bad_tokenizer", actor, lambda folder: cut(folder, "tokenizer.json"))
    yield Case("half a tokenizer.json", train(f"actor.path={place}"), "cannot be loaded")
    yield Case("a tokenizer without EOS", train(f"actor.path={broken('no_eos', actor, no_eos)}"), "no EOS")
    place = broken("no_chat", actor, lambda folder: tokenizer_config(folder, "chat_template"))
    yield Case("a tokenizer without a chat template", train(f"actor.path={place}"), "prompt=plain")
    place = broken(
        "remote", actor, lambda folder: config(folder, auto_map={"AutoModelForCausalLM": "x.Y"}, model_type="x")
    )
    yield Case("a model that wants its own code run", train(f"actor.path={place}"), "cannot be loaded")
    place = broken("pickle", actor, evil)
    yield Case("weights that are a program (pickle)", train(f"actor.path={place}"), "cannot be loaded")
    labels = {"0": "good", "1": "bad", "2": "ugly"}
    place = broken("labels", classifier, lambda folder: config(folder, id2label=labels, label2id={}))
    yield Case("a reward without 'negative'", train("reward=roberta_large", f"reward.path={place}"), "good, bad, ugly")
    place = broken("multi", classifier, lambda folder: config(folder, problem_type="multi_label_classification"))
    yield Case("a multi-label reward", train("reward=roberta_large", f"reward.path={place}"), "multi")
    yield Case(
        "a learned reward that is a classifier", train("reward=learned", f"reward.path={classifier}"), "reward-train"
    )
    yield Case("prompts longer than the context", train(f"prompt.user='{'{prefix} ' + 'go on ' * 20000}'"), "context")
    tight = broken("context", actor, lambda folder: config(folder, max_position_embeddings=32))
    yield Case("prompt + response longer than the context", train(f"actor.path={tight}"), "context")

    # data
    def source(name: str, content: bytes) -> list[str]:
        (home / name).write_bytes(content)
        return train(f"data.source={home / name}")

    yield Case("a source that is not there", train("data.source=imbd"), "no such file")
    yield Case("a source without the columns", source("a.jsonl", b'{"body": "x"}\n'), "no column 'text'")
    yield Case("an empty source", source("b.jsonl", b""), "no review")
    yield Case("a row without text", source("c.jsonl", b'{"text": "x y"}\n{"text": ""}\n'), "row 2: the text is empty")
    yield Case("a row that is not UTF-8", source("d.csv", b"text,label\ncaf\xe9,1\n"), "not UTF-8")
    yield Case("a row that is not JSON", source("e.jsonl", b'{"text": "x"\n'), "not JSON")
    yield Case("an unknown label", source("f.jsonl", b'{"text": "x", "label": 7}\n'), "label 7")
    rows = "".join(f'"film {n}",{n % 2}\n' for n in range(40)).replace('"film 7"', '"film 7')
    yield Case("a stray quote in a CSV", source("q.csv", f"text,label\n{rows}".encode()), "from line 9 on")
    chinese = "".join(json.dumps({"text": "这部电影真的非常好看我很喜欢" * 3}) + "\n" for _ in range(40))
    yield Case("text without spaces", source("zh.jsonl", chinese.encode()), "data.unit=character")
    half = b'{"text": "half \\ud83d of it"}\n'
    yield Case("half a character in JSON", source("half.jsonl", half), "row 1: the text holds half a character")
    yield Case("labels first, a stray quote", source("q2.csv", b'label,text\n1,"a\n0,b\n1,c"\n'), "a quote is missing")
    yield Case("a torn gzip", source("g.jsonl.gz", b"\x1f\x8b\x08"), "cannot be read")
    yield Case("a parquet file that is none", source("h.parquet", b"PAR1"), "cannot be read")
    yield Case(
        "too few reviews", source("i.jsonl", b'{"text": "one two three four five six seven"}\n'), "too few prefixes"
    )

    # rewards of one's own
    yield Case("a reward.fn that is not there", train("reward=python", "reward.fn=nowhere:fn"), "reward.fn=nowhere:fn")
    yield Case("a reward.fn without a colon", train("reward=python", "reward.fn=json"), "module:function")

    (home / "given.py").write_text(
        "def table(p, r): return {i: 1.0 for i in range(len(r))}\ndef text(p, r): return '1' * len(r)\n"
        "def bag(p, r): return set(range(len(r)))\ndef few(p, r): return [1.0]\n",
        encoding="utf-8",
    )
    wrong_kinds = {
        "table": "a dict is no list",
        "text": "a str is no list",
        "bag": "a set is no list",
        "few": "1 scores",
    }
    for name, part in wrong_kinds.items():
        own = train("reward=python", f"reward.fn={home / 'given.py'}:{name}")
        yield Case(f"a reward.fn that gives a {name}", own, part, code=1)
    same = "".join(json.dumps({"prompt": f"film {n}", "responses": ["the same", "the same"]}) + "\n" for n in range(20))
    (home / "same.jsonl").write_text(same, encoding="utf-8")
    ranked = ["reward-train", "scale=mini", "tracking=none", f"reward_train.data={home / 'same.jsonl'}"]
    yield Case(
        "rankings of equal texts", [*ranked, f"hydra.run.dir={home / 'ranked'}"], "there is nothing to learn from"
    )
    (home / "one.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n' * 10, encoding="utf-8")
    mix = train("algo=ppo_ptx", f"algo.ptx_source={home / 'one.jsonl'}")
    yield Case("a pretraining mix of one-token texts", mix, "two texts of two tokens at least")
    yield Case("an empty prompt", ["sample", *SMALL, f"actor.path={actor}", "prompt=plain", ""], "a prompt is empty")
    yield Case("words that are not UTF-8", ["sample", *SMALL, "gr\udcfcn"], "this is not UTF-8")

    # run folders
    run = home / "taken"
    with redirect_stdout(io.StringIO()):
        assert answer(train(f"hydra.run.dir={run}"))[0] == 0
    yield Case("a run folder that holds a run", train(f"hydra.run.dir={run}"), "already holds a run")
    yield Case("resume with another config", ["train", f"resume={run}", "algo.beta=0.5"], "algo.beta: 0.03 -> 0.5")
    auto = train(f"hydra.run.dir={run}", "resume=auto", "algo.beta=0.5")
    yield Case("resume=auto with another config", auto, "algo.beta: 0.03 -> 0.5")
    yield Case("resume of nothing", ["train", f"resume={home / 'nothing'}"], "no run is there")
    with (run / ".lock").open("a", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield Case("a run folder at which another process works", ["train", f"resume={run}", "steps=2"], "is at work")
    yield Case("a run folder that cannot be written", train("hydra.run.dir=/proc/run"), "cannot be written")
    yield Case("true for a number", train("steps=true"), "steps=true: wanted is a number")
    yield Case("no name for the run's folder", ["train", *SMALL, "hydra.run.dir="], "names no folder")
    yield Case("more jobs than anybody waits for", ["sweep", "seed=range(0,1000000)"], "1,000,000 jobs")
    yield Case(
        "batches of no jobs", ["sweep", "seed=0,1", "hydra.sweeper.max_batch_size=-1"], "max_batch_size=-1: jobs"
    )
    yield Case("a cache that cannot be written", train("cache_dir=/proc/cache", "seed=5"), "cannot be written")
    (home / "file").write_text("", encoding="utf-8")
    yield Case("a run folder under a file", train(f"hydra.run.dir={home / 'file' / 'run'}"), "cannot be written")
    [checkpoint] = (run / "checkpoints").glob("step_*")
    cut(checkpoint / "actor")
    yield Case(
        "eval of a torn checkpoint", ["eval", f"checkpoint={checkpoint}", f"hydra.run.dir={home / 'e'}"], "is torn"
    )
    yield Case("eval of a step that is not there", ["eval", f"{checkpoint}9"], "there are step_000001")
    yield Case("compare with nothing", ["compare", str(run), "nowhere"], "against=")
    foreign = home / "foreign"
    foreign.mkdir()
    saved = (run / "config.yaml").read_text(encoding="utf-8").replace("loss: null", "loss: theirs:fn")
    (foreign / "config.yaml").write_text(saved, encoding="utf-8")
    told = "trust_config=true, or without them: algo.loss=null"
    yield Case("eval of a foreign run that names code", ["eval", str(foreign)], told)
    yield Case("a new run from one that names code", ["train", f"from={foreign}"], told)
    yield Case("eval of nothing", ["eval", "checkpoint=nowhere"], "there is no such folder")
    (home / "half").mkdir()
    (home / "half" / "config.yaml").write_text("seed: [", encoding="utf-8")
    yield Case("a saved config that is half", ["train", f"resume={home / 'half'}"], "cannot be read")

    # keys
    yield Case("an unknown key", train("algo.epsilonn=1"), "algo.epsilon")
    yield Case("an unknown option", train("reward=robert"), "Allowed: ")
    yield Case("a value out of range", train("algo.epsilon=-1"), "greater than 0")
    yield Case("a contradiction", train("critic=none"), "needs a critic")
    yield Case("not a number", train("algo.beta=nan"), "algo.beta")
    yield Case("a CUDA device where there is none", train("device=cuda:99"), "device=")
    yield Case("a group that is null", train("critic=null"), "type critic=none")
    yield Case("a group without an option", train("reward="), "leave reward= out")
    yield Case("two options of one group", train("reward=[vader,form]"), "reward=mix")
    yield Case("resume of no folder", ["train", "resume="], "names no folder")
    yield Case("a sweep's resume of no folder", ["sweep", "resume="], "names no folder")
    yield Case("eval of no folder", ["eval", "checkpoint="], "names no folder")
    yield Case("another config path", ["train", "--config-path", "/nowhere"], "--config-dir <folder>")
    yield Case("another config name", ["train", "--config-name", "mine"], "--config-dir <folder>")
    yield Case("dashes before a key", ["train", "--experiment=smoke"], "without dashes")
    yield Case("spaces around the equals sign", ["train", "steps", "=", "3"], "as in steps=10")
    yield Case("a number for a name", train("tracking.project=2024"), "in quotes: tracking.project=")
    yield Case("a number among tags", train("tags=[a,2024]"), "tags=\"['a','2024']\"")
    yield Case("one tag", train("tags=first"), "in brackets: tags=\"['first']\"")
    yield Case("a device by its kind", train("device=gpu"), "cpu, cuda, cuda:0")
    yield Case("a section as one value", train("penalty=None"), "without it: penalty.weight=0")
    yield Case("a list of actors", train("actor=[qwen_base,qwen_instruct]"), "rlhf sweep actor=")
    yield Case("a key that is there, with +", train("+algo.beta=0.1"), "type it without +")
    yield Case("no experiment", train("experiment=null"), "leave experiment= out")
    yield Case("a glob of nothing", ["sweep", *SMALL, "algo=glob(zz*)"], "this sweep has no job")
    yield Case("a batch that fits neither", train("algo.minibatches=3"), "(try rollout.batch_size=9)")
    yield Case("a horizon of nothing", train("algo.beta_target=6", "algo.beta_horizon=0"), "beta_horizon=0")
    yield Case("a tiny temperature", train("rollout.temperature=1e-9"), "rollout.temperature=1e-09")
    yield Case("a text that looks like a key", ["sample", *SMALL, "a=b"], "rlhf sample … -- 'the text'")
    yield Case("an objective that is not there", train("objective=val/scoer"), "Did you mean objective=val/score?")
    yield Case(
        "a best that is not there", train("checkpoint.best=val/scoer"), "Did you mean checkpoint.best=val/score?"
    )
    yield Case("a reward.fn of other arguments", train("reward=python", "reward.fn=json:dumps"), "with 2 arguments")
    yield Case("an algo.loss of other arguments", train("algo.loss=json:dumps"), "with 4 arguments")
    yield Case("an algo.loss that is not there", train("algo.loss=nowhere:fn"), "No module named 'nowhere'")
    yield Case("an experiment that is not there", train("experiment=smoek"), "Did you mean experiment=smoke?")
    yield Case("one job twice", ["sweep", *SMALL, "seed=0,0", f"hydra.sweep.dir={home / 'twice'}"], "job 0 once more")
    yield Case("a judge that is not there", train("reward=judge", *refused_connection()), "gave no score")
    yield Case("chdir", train("hydra.job.chdir=true"), "stays in the folder")
    yield Case("three runs to compare", ["compare", "a", "b", "c"], "takes two runs")
    yield Case("an unknown command", ["trian"], "Did you mean train?")
    yield Case(
        "half a sweep", ["train", "-m", *SMALL, "algo.beta=0.1,-1", f"hydra.sweep.dir={home / 's'}"], "algo.beta"
    )


def refused_connection() -> list[str]:
    """The keys of a judge at a port where nobody listens, asked once."""
    return ["reward.endpoint.url=http://127.0.0.1:9/v1", "reward.endpoint.model=any", "reward.endpoint.retries=0"]


def evil(folder: Path) -> None:
    """Weights that would run a command when unpickled."""
    import pickle

    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {folder / 'ran'}",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


@contextmanager
def hub(behaviour: str) -> Iterator[str]:
    """A local server in the place of the hub, which hangs, fails, drips or babbles."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                if behaviour == "hangs":
                    time.sleep(60)
                elif behaviour == "fails":
                    self.send_error(503)
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", "100000" if behaviour == "drips" else "5")
                    self.end_headers()
                    for _ in range(60 if behaviour == "drips" else 1):
                        self.wfile.write(b"hello" if behaviour == "babbles" else b" ")
                        self.wfile.flush()
                        time.sleep(behaviour == "drips")
            except OSError:
                pass

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def answer(argv: list[str]) -> tuple[int, str, str]:
    """(exit code, what was said on stderr, and on stdout)"""
    from rlhf_cli.cli import dispatch

    with redirect_stderr(io.StringIO()) as error, redirect_stdout(io.StringIO()) as out:
        code = dispatch(argv)
    return code, error.getvalue(), out.getvalue()


def one_message(said: str) -> str | None:
    """The message without the lines that libraries print, None if it is not one message."""
    if "Traceback" in said or said.count("rlhf: ") != 1:
        return None
    return said[said.index("rlhf: ") + 6 :].strip()


def judge(case: Case) -> tuple[bool, int, str]:
    """(as it should be, exit code, message)"""
    code, said, _ = answer(case.argv)
    message = one_message(said)
    return code == case.code and message is not None and case.part in message, code, message or said


def misbehaving_hubs(home: Path) -> Iterator[tuple[str, float, int, str]]:
    """(behaviour, seconds, exit code, message) of a process of its own against each server."""
    import subprocess

    model = ["scale=full", "device=cpu", "tracking=none", "reward=vader", "gold=none", "data.source=generated"]
    command = [sys.executable, "-m", "rlhf_cli", "train", *model, "data.labeler=vader"]
    for behaviour in ("hangs", "fails", "drips", "babbles"):
        with hub(behaviour) as url:
            environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"}
            begin = time.monotonic()
            done = subprocess.run(
                [*command, f"hydra.run.dir={home / behaviour}"],
                capture_output=True, text=True, timeout=120, env=environment,
            )  # fmt: skip
            yield behaviour, time.monotonic() - begin, done.returncode, one_message(done.stderr) or done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("RLHF_CACHE", "~/.cache/rlhf")).expanduser())
    args = parser.parse_args()
    from rlhf_cli.miniatures.build import miniature

    actor, classifier = (
        miniature(n, source="generated", cache_dir=args.cache) for n in ("qwen_instruct", "roberta_large")
    )
    wrong, tried = 0, 0
    print("| input | exit code | message |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:

        def row(what: str, good: bool, code: int, message: str) -> None:
            nonlocal wrong, tried
            wrong, tried = wrong + (not good), tried + 1
            cell = message.replace(str(actor), "ACTOR").replace(str(classifier), "CLASSIFIER")
            cell = cell.replace(folder, "…").replace(os.getcwd(), ".")
            cell = " ".join(cell.split()).replace("|", "\\|")
            print(f"| {what} | {code}{'' if good else ' **WRONG**'} | {cell[:300]} |", flush=True)

        for case in cases(actor, classifier, Path(folder)):
            row(case.what, *judge(case))
        if list(Path(folder).rglob("ran")):
            row("the program among the weights was run", False, 0, "")
        for behaviour, seconds, code, message in misbehaving_hubs(Path(folder)):
            row(f"a hub that {behaviour} ({seconds:.0f} s)", code == 2 and "Traceback" not in message, code, message)
    print(f"\n{tried} inputs tried, {tried - wrong} refused as they should be")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
