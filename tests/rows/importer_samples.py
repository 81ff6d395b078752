"""A small sample of each format's real schema: `sample(folder)` writes it and returns (SOURCE, its records)."""

import csv
import datetime
import json

import pyarrow
import pyarrow.parquet as parquet

JPG = [b"\xff\xd8\xff\xe0first", b"\xff\xd8\xff\xe0second", b"\xff\xd8\xff\xe0third"]


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def save_csv(path, records):
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(records[0]))
        table.writeheader()
        table.writerows(records)


def save_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def pickapic(folder):
    def record(number, labels, has_label=True):
        return {
            "are_different": labels[0] != labels[1],
            "best_image_uid": ["u0", "u1"][labels[1] is not None and labels[1] > labels[0]],
            "caption": f"a house, {number}",
            "created_at": datetime.datetime(2023, 5, 1, 12, number),
            "has_label": has_label,
            "image_0_uid": "u0",
            "image_0_url": "https://example.com/0.png",
            "jpg_0": JPG[0],
            "jpg_1": JPG[number % 3],
            "label_0": labels[0],
            "label_1": labels[1],
            "model_0": "m0",
            "model_1": None,
            "ranking_id": 17,  # not unique in the data
            "num_example_per_prompt": 2,
            "__index_level_0__": number,
        }

    records = [
        record(1, (1.0, 0.0)),
        record(2, (0.0, 1.0)),
        record(4, (0.5, 0.5)),
        record(5, (0.5, 0.5), False),
    ]
    (folder / "data").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(records[:2]), folder / "data" / "train-00000.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(records[2:]), folder / "data" / "train-00001.parquet")
    return folder, records


def videodpo(folder):
    touch(
        folder,
        "winvideos/000003.mp4",
        "losevideos/000003.mp4",
        "winvideos/000007.mp4",
        "losevideos/000007.mp4",
    )

    def clip(path, index, score):
        basic = {"clip_duration": 1.6, "clip_path": path, "globalidx": index, "score": score}
        return {"basic": basic, "misc": {"frame_caption": [f"prompt {index}"]}}

    clips = [
        clip("/home/someone/set/winvideos/000003.mp4", 3, 0.9),  # made on another machine
        clip("losevideos/000003.mp4", 3, 0.4),
        clip("winvideos/000007.mp4", 7, 0.3),
        clip("losevideos/000007.mp4", 7, 0.6),
    ]
    pairs = [
        {"video1": 0, "video2": 1, "label": 0, "frame_caption": "prompt 3", "score": 0.36, "diff_score": 0.5},
        {
            "video1": 2,
            "video2": 3,
            "label": 1,
            "frame_caption": "prompt 7",
            "score": 0.18,
            "diff_score": -0.3,
        },
        {"video1": 2, "video2": 3, "label": 0.5, "frame_caption": "prompt 7"},
    ]
    (folder / "metadata.json").write_text(json.dumps(clips))
    (folder / "pair.json").write_text(json.dumps(pairs))
    records = [
        {"pair": pair, "video1": clips[pair["video1"]], "video2": clips[pair["video2"]]} for pair in pairs
    ]
    return folder, records


def videoalign(folder):
    touch(folder, "videos/1_A.mp4", "videos/1_B.mp4")
    common = {"path_A": "./videos/1_A.mp4", "path_B": "./videos/1_B.mp4", "prompt": 'a cat, "Tom"\nwalks'}
    rest = {"fps_A": "8", "num_frames_A": "33", "fps_B": "8", "num_frames_B": "33", "A_model": "m1"}
    records = [
        {**common, "VQ": "A", "MQ": "B", "TA": "same", **rest},
        {**common, "VQ": "same", "MQ": "", "TA": "A", **rest},
        {**common, "VQ": "", "MQ": "", "TA": "", **rest},
    ]
    save_csv(folder / "data.csv", records)
    rows = [records[0]] * 3 + [records[1]] * 2 + [records[2]]  # one per judged dimension
    return folder / "data.csv", rows


def rapidata(folder):
    def record(number, votes, **more):
        columns = {
            f"weighted_results{side}_{name}": share
            for name, both in votes.items()
            for side, share in zip((1, 2), both, strict=True)
        }
        details = [{"userDetails": {"country": "DE"}, "votedFor": "a.mp4", "score": 0.7}]
        return {
            "prompt": f"p{number}",
            "video1": f"https://example.com/{number}-1.mp4",
            "video2": f"https://example.com/{number}-2.mp4",
            "file_name1": "a.mp4",
            "model1": "sora",
            **columns,
            "detailedResults_Preference": details,
            "prompt_asset": {"bytes": JPG[number], "path": "start.jpg"},
            **more,
        }

    records = [
        record(0, {"Preference": (0.2, 0.8), "Coherence": (0.6, 0.4), "Alignment": (0.5, 0.5)}),
        record(1, {"Preference": (0.5, 0.5), "Coherence": (1.0, 0.0), "Alignment": (None, None)}),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "train.parquet")
    return folder / "train.parquet", records


def densedpo(folder):
    touch(folder, "a.mp4", "b.mp4")
    common = {"prompt": "a dancer", "video1": "a.mp4", "video2": "b.mp4", "guidance": 0.65}
    timed = [{"start": 0, "end": 0.5, "label": "B"}, {"start": 0.5, "end": 2, "label": "same"}]
    records = [
        {**common, "segments": ["A", "same", "B", "A"]},
        {**common, "segments": [-1, -1, 0]},
        {**common, "segments": timed},
        {**common, "segments": ["A", "B"]},
    ]
    save_jsonl(folder / "pairs.jsonl", records)
    return folder / "pairs.jsonl", records


def localdpo(folder):
    touch(folder, "real/1.mp4", "made/1.mp4", "masks/1.png")
    records = [
        {
            "caption": "a street",
            "real": "real/1.mp4",
            "corrupted": "made/1.mp4",
            "mask": "masks/1.png",
            "noise": 0.7,
        }
    ]
    save_jsonl(folder / "train.jsonl", records)
    return folder / "train.jsonl", records


def folders(folder):
    touch(folder, "win/a.mp4", "lose/a.mp4", "win/deep/b_c.mov", "lose/deep/b_c.mp4", "win/alone.mp4")
    (folder / "win/a.txt").write_text("a red ball")
    (folder / "lose/a.txt").write_text("a ball")
    (folder / "win/a.json").write_text('{"seed": 4}')
    named = {"name": "a", "chosen.txt": "a red ball", "chosen.json": {"seed": 4}, "rejected.txt": "a ball"}
    return folder, [named, {"name": "deep/b_c"}]


def trl(folder):
    touch(folder, "a.mp4", "b.mp4")
    asked = [{"role": "user", "content": "a dog"}]
    shown = [{"role": "assistant", "content": [{"type": "video", "video": "a.mp4"}]}]
    other = [{"role": "assistant", "content": "b.mp4"}]
    records = [
        {
            "id": "x",
            "prompt": "a dog",
            "chosen": "a.mp4",
            "rejected": "b.mp4",
            "score_chosen": 8,
            "score_rejected": 3,
        },
        {"id": "x", "prompt": asked, "chosen": shown, "rejected": other},
        {"chosen": asked + shown, "rejected": asked + other, "extra": [1, {"y": None}]},
        {"prompt": "a dog", "completion": "a.mp4", "label": True},
        {"prompt": "a dog", "completion": {"path": "b.mp4", "bytes": None}, "label": False},
    ]
    save_jsonl(folder / "train.jsonl", records)
    return folder / "train.jsonl", records


def best_of_n(folder):
    touch(folder, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    scores = {"a.mp4": ("p", 0.9), "b.mp4": ("p", 0.1), "c.mp4": ("p", 0.9), "d.mp4": ("q", 0.5)}
    records = [
        {"prompt": prompt, "video": name, "score": score, "seed": 7}
        for name, (prompt, score) in scores.items()
    ]
    save_jsonl(folder / "scores.jsonl", records)
    a, b, c, _ = records
    return folder / "scores.jsonl", [
        {"chosen": first, "rejected": second} for first, second in ((a, b), (c, b), (a, c))
    ]


def table(folder):
    touch(folder, "1a.mp4", "1b.mp4")
    records = [
        {"Prompt": f"p, {winner}", "Video 1": "1a.mp4", "Video 2": "1b.mp4", "Winner": winner, "Rater": "7"}
        for winner in ("A", "B", "tie", "")
    ]
    save_csv(folder / "pairs.csv", records)
    return folder / "pairs.csv", records


SAMPLES = (  # in the registry's order
    pickapic,
    videodpo,
    videoalign,
    rapidata,
    densedpo,
    localdpo,
    folders,
    trl,
    best_of_n,
    table,
)
