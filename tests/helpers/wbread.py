"""Read a wandb 0.31 offline run file: a LevelDB log of protobuf Records.

`read` gives config, history, summary, group and exit code.
"""

import json
import struct
from pathlib import Path

BLOCK = 32768


def payloads(path):
    b = Path(path).read_bytes()
    ident, magic, ver = struct.unpack("<4sHB", b[:7])
    assert ident == b":W&B", (ident, hex(magic), ver)
    pos, buf = 7, b""
    while pos + 7 <= len(b):
        left = BLOCK - pos % BLOCK
        if left < 7:
            pos += left
            continue
        _crc, n, typ = struct.unpack("<IHB", b[pos : pos + 7])
        if typ == 0:
            pos += left
            continue  # zero padding
        data = b[pos + 7 : pos + 7 + n]
        pos += 7 + n
        if typ == 1:
            yield data
        elif typ == 2:
            buf = data
        elif typ == 3:
            buf += data
        elif typ == 4:
            yield buf + data
            buf = b""


def read(path):
    from wandb.proto import wandb_internal_pb2 as pb

    out = {
        "config": {},
        "summary": {},
        "history": [],
        "run": None,
        "exit": None,
        "kinds": {},
        "files": [],
        "resumed": None,
    }

    def put(d, it):
        keys = list(it.nested_key) or [it.key]
        for k in keys[:-1]:
            d = d.setdefault(k, {})
        d[keys[-1]] = json.loads(it.value_json)

    for p in payloads(path):
        r = pb.Record()
        r.ParseFromString(p)
        k = r.WhichOneof("record_type")
        out["kinds"][k] = out["kinds"].get(k, 0) + 1
        if k == "run":
            u = r.run
            out["run"] = {
                "id": u.run_id,
                "name": u.display_name,
                "group": u.run_group,
                "job_type": u.job_type,
                "project": u.project,
                "entity": u.entity,
                "tags": list(u.tags),
                "resumed": u.resumed,
                "starting_step": u.starting_step,
            }
            for it in u.config.update:
                put(out["config"], it)
        elif k == "config":
            for it in r.config.update:
                put(out["config"], it)
        elif k == "summary":
            for it in r.summary.update:
                put(out["summary"], it)
        elif k == "history":
            row = {}
            for it in r.history.item:
                put(row, it)
            if r.history.HasField("step"):
                row.setdefault("_step", r.history.step.num)
            out["history"].append(row)
        elif k == "files":
            out["files"] += [f.path for f in r.files.files]
        elif k == "exit":
            out["exit"] = r.exit.exit_code
    return out


if __name__ == "__main__":
    import pprint
    import sys

    for f in sys.argv[1:]:
        pprint.pprint(read(f), width=160, compact=True)
