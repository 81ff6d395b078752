"""The tables of tests/rows/test_table_corpus.py: pairs that people keep, as programs of several countries write them.

`python -m tests.rows.write_tables` writes tests/assets/tables anew, versions.json among them. It needs pandas, polars,
openpyxl and LibreOffice (`soffice`), which the tests do not. Every table tells of the same pairs: of the first and
the fourth the first clip is the better one, of the second the second, and the third is a tie.
"""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "assets" / "tables"
PROMPTS = {
    "en": ["a cat, asleep", 'a dog says "hi"', "a tree\nin the wind", "rain; then sun"],
    "de": ["ein Mädchen läuft, schnell", "grüne Wälder", "Straße im Süden", "Regen; dann Sonne – schön"],
    "fr": ["une forêt très près", "un château à côté", "la mer, le soir", "des garçons jouent déjà"],
    "pl": [
        "żółty kot śpi na łące",
        "dziewczyna idzie przez śnieg",
        "pies, łódź i jezioro",
        "deszcz; słońce świeci",
    ],
    "ru": [
        "кошка спит на лугу",
        "девочка идёт по снегу",
        "дождь, потом солнце",
        "красный шар катится медленно",
    ],
    "el": ["η γάτα κοιμάται", "ένα κορίτσι τρέχει", "η θάλασσα, το βράδυ", "ο ήλιος πάνω από την πόλη"],
    "tr": [
        "kız çayırda koşuyor",
        "güneş şehrin üstünde doğuyor",
        "ağaç, rüzgâr ve yağmur",
        "küçük köpek ışıkta",
    ],
    "ja": ["猫が草の上で眠る", "女の子が雪の中を走る", "赤いボール、青い空", "雨のあとで日が出る"],
    "zh": ["一只猫在草地上睡觉", "女孩在雪中奔跑", "红色的球，蓝色的天", "下雨以后太阳出来了"],
}
FIRST = [f"clips/{number}a.mp4" for number in range(1, 5)]
SECOND = [f"clips/{number}b.mp4" for number in range(1, 5)]


def columns(names: str, *more: list[Any], language: str = "en") -> dict[str, list[Any]]:
    """{column: values}: the prompts, both clips, and what more is given, under these names."""
    return dict(zip(names.split(","), [PROMPTS[language], FIRST, SECOND, *more], strict=True))


def without_ties(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [*values[:2], *values[3:]] for name, values in table.items()}


def chosen_and_rejected(first: str, second: str) -> dict[str, list[Any]]:
    better, worse = [FIRST[0], SECOND[1], FIRST[3]], [SECOND[0], FIRST[1], SECOND[3]]
    prompts = [*PROMPTS["en"][:2], PROMPTS["en"][3]]
    return {"prompt": prompts, first: better, second: worse}


def ratings(clip: str, score: str) -> dict[str, list[Any]]:
    """A row a clip; the third prompt's two have one score."""
    return {
        "prompt": [prompt for prompt in PROMPTS["en"] for _ in range(2)],
        clip: [name for pair in zip(FIRST, SECOND, strict=True) for name in pair],
        score: [0.75, 0.5, 0.25, 0.8, 0.6, 0.6, 1.0, 0.125],
    }


def by_pandas(folder: Path) -> None:
    import pandas

    def frame(names: str, *more: list[Any], language: str = "en"):
        return pandas.DataFrame(columns(names, *more, language=language))

    frame("prompt,video_1,video_2,winner", ["A", "B", "tie", "A"]).to_csv(folder / "pandas_index.csv")
    scores = [0.75, 0.25, 0.5, 9.125], [0.5, 0.8, 0.5, 1.0]
    frame("prompt,video_1,video_2,score_1,score_2", *scores, language="de").to_csv(
        folder / "pandas_decimal_comma.csv", sep=";", decimal=",", index=False
    )
    frame(
        "prompt,left_video,right_video,preference", ["left", "right", "same", "left"], language="fr"
    ).to_csv(folder / "pandas_utf16.tsv", sep="\t", encoding="utf-16", index=False)
    frame("Prompt,Video A,Video B,Winner", ["Video A", "Video B", "Same", "Video A"], language="ja").to_csv(
        folder / "pandas_quoted_bom.csv", encoding="utf-8-sig", quoting=csv.QUOTE_ALL, index=False
    )
    frame("prompt,clip_1,clip_2,better", ["first", "second", "tie", "first"], language="de").to_csv(
        folder / "pandas_cp1252.csv", sep=";", encoding="cp1252", index=False
    )
    frame("prompt,video_1,video_2,winner", FIRST[:1] + SECOND[1:2] + ["tie"] + FIRST[3:]).to_csv(
        folder / "pandas_bars.csv", sep="|", index=False
    )
    judged = [1.0, 2.0, None, 1.0]
    frame("caption,a,b,choice", judged).to_csv(folder / "pandas_unjudged.csv", index=False)
    frame("prompt,path_a,path_b,label", judged).to_parquet(folder / "pandas.parquet")
    frame("prompt,video_1,video_2,winner", ["video_1", "video_2", "equal", "video_1"]).to_json(
        folder / "pandas_columns.json"
    )
    frame("prompt,video_1,video_2,winner", [1, 2, "draw", 1], language="zh").to_json(
        folder / "pandas_records.json", orient="records", force_ascii=False
    )
    pandas.DataFrame(
        without_ties(columns("prompt,video_a,video_b,a_is_better", [True, False, None, True]))
    ).to_json(folder / "pandas_lines.json", orient="records", lines=True)


def by_polars(folder: Path) -> None:
    import polars

    polars.DataFrame(chosen_and_rejected("chosen", "rejected")).write_csv(folder / "polars.csv")
    polars.DataFrame(columns("prompt,video1,video2,votes1,votes2", [3, 1, 2, 4], [1, 3, 2, 0])).write_csv(
        folder / "polars_votes.csv", separator=";"
    )
    files = [FIRST[0][6:], SECOND[1][6:], "tie", FIRST[3][6:]]
    polars.DataFrame(columns("prompt,video_1,video_2,winner", files)).write_ndjson(folder / "polars.ndjson")
    models = ["wan", "wan", "wan", "ltx"], ["ltx", "ltx", "ltx", "wan"], ["wan", "ltx", "tie", "ltx"]
    table = polars.DataFrame(columns("prompt,video_a,video_b,model_a,model_b,winner", *models))
    table.with_columns(polars.col("winner").cast(polars.Categorical)).write_parquet(folder / "polars.parquet")
    polars.DataFrame(columns("prompt,video_0,video_1,label", ["0", "1", "tie", "0"])).write_json(
        folder / "polars.json"
    )
    polars.DataFrame(columns("text,url_1,url_2,winner", ["1", "2", "both", "1"], language="ru")).write_csv(
        folder / "polars_tabs.txt", separator="\t", include_bom=True
    )
    polars.DataFrame(ratings("video_path", "score")).write_parquet(folder / "polars_ratings.parquet")


OFFICE = {  # name -> (language, locale, separator, charset's number in LibreOffice, ending)
    "en_us": ("en", "en-US", 44, 76, ".csv"),
    "de_de": ("de", "de-DE", 59, 1, ".csv"),
    "fr_fr": ("fr", "fr-FR", 59, 76, ".csv"),
    "unicode_text": ("pl", "pl-PL", 9, 65535, ".txt"),
    "pl_pl": ("pl", "pl-PL", 59, 33, ".csv"),
    "ru_ru": ("ru", "ru-RU", 59, 34, ".csv"),
    "el_gr": ("el", "el-GR", 59, 35, ".csv"),
    "tr_tr": ("tr", "tr-TR", 59, 36, ".csv"),
    "ja_jp": ("ja", "ja-JP", 44, 64, ".csv"),
}
LOCALE = """<?xml version="1.0" encoding="UTF-8"?>
<oor:items xmlns:oor="http://openoffice.org/2001/registry" xmlns:xs="http://www.w3.org/2001/XMLSchema">
<item oor:path="/org.openoffice.Setup/L10N"><prop oor:name="ooSetupSystemLocale" oor:op="fuse"><value>{}</value>
</prop></item></oor:items>
"""


def by_libreoffice(folder: Path) -> None:
    """Sheets with numbers, as LibreOffice saves them under each country's settings: as shown, so 0,75 in Germany."""
    import openpyxl

    for name, (language, locale, separator, charset, ending) in OFFICE.items():
        table = columns(
            "Prompt,Video 1,Video 2,Score 1,Score 2",
            [0.75, 0.25, 0.5, 9.5],
            [0.5, 0.8, 0.5, 1.25],
            language=language,
        )
        book = openpyxl.Workbook()
        sheet = book.active
        for row in [list(table), *zip(*table.values(), strict=True)]:
            sheet.append(row)
        for cells in sheet.iter_rows(min_row=2, min_col=4):
            for cell in cells:
                cell.number_format = "0.00"
        with tempfile.TemporaryDirectory() as scratch:
            book.save(f"{scratch}/libreoffice_{name}.xlsx")
            user = Path(scratch, "profile", "user")
            user.mkdir(parents=True)
            (user / "registrymodifications.xcu").write_text(LOCALE.format(locale))
            form = f"{ending[1:]}:Text - txt - csv (StarCalc):{separator},34,{charset},1,,0,false,true,false"
            command = ["soffice", f"-env:UserInstallation=file://{scratch}/profile", "--headless"]
            command += ["--convert-to", form, "--outdir", str(folder), f"{scratch}/libreoffice_{name}.xlsx"]
            subprocess.run(command, check=True, capture_output=True)


WILD = {
    # VideoAlign: three aspects, and nothing says which decides
    "videoalign.csv": "prompt,path_A,path_B,VQ,MQ,TA",
    "videoalign_overall.csv": "prompt,path_A,path_B,A_model,B_model,Overall",
    "rapidata.parquet": "prompt,video1,video2,weighted_results1_Preference,weighted_results2_Preference",
    "pickapic_urls.parquet": "caption,image_0_url,image_1_url,label_0,label_1",
    "genai_arena.jsonl": "prompt,left_video,right_video,vote_type",
    "arena.jsonl": "prompt,video_a,video_b,model_a,model_b,winner",
    "form.csv": "Prompt,Video 1,Video 2,Timestamp,Which video is better?",
    "label_studio.json": "prompt,video_left,video_right,annotation_id,annotator,choice",
    "zero_and_one.csv": "prompt,video_1,video_2,label",
    "camel_case.jsonl": "prompt,videoA,videoB,preferredVideo",
}
A_B = ["A", "B", "same", "A"]
SAID = {
    "videoalign.csv": (A_B, ["B", "A", "same", "A"], ["same", "A", "B", "A"]),
    "videoalign_overall.csv": (["wan"] * 4, ["ltx"] * 4, A_B),
    "rapidata.parquet": ([0.75, 0.25, 0.5, 1.0], [0.25, 0.75, 0.5, 0.0]),
    "pickapic_urls.parquet": ([1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 0.5, 0.0]),
    "genai_arena.jsonl": (["leftvote", "rightvote", "bothbad_vote", "leftvote"],),
    "arena.jsonl": (["wan"] * 4, ["ltx"] * 4, ["model_a", "model_b", "tie (bothbad)", "model_a"]),
    "form.csv": (
        ["2026/11/20 10:12:00"] * 4,
        ["Video 1 is better", "Video 2 is better", "About the same", "Video 1 is better"],
    ),
    "label_studio.json": ([1, 2, 3, 4], [7, 7, 7, 7], ["left", "right", "same", "left"]),
    "zero_and_one.csv": ([0, 1, 0, 0],),
    "camel_case.jsonl": (["videoA", "videoB", "tie", "videoA"],),
}


def by_hand(folder: Path) -> None:
    """Columns as published sets and forms have them, and what spreadsheets do to a file."""
    import pyarrow
    import pyarrow.parquet as parquet

    for name, names in WILD.items():
        table = columns(names, *SAID[name])
        if name == "pickapic_urls.parquet":
            urls = [[f"https://example.com/{clip[6:8]}.png" for clip in side] for side in (FIRST, SECOND)]
            table |= {"image_0_url": urls[0], "image_1_url": urls[1]}
        records = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        if name.endswith(".parquet"):
            parquet.write_table(pyarrow.table(table), folder / name)
        elif name.endswith(".csv"):
            with (folder / name).open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerows([list(table), *zip(*table.values(), strict=True)])
        elif name.endswith(".json"):
            (folder / name).write_text(json.dumps(records, indent=1) + "\n")
        else:
            (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    prompts = PROMPTS["de"]
    winners = ["VIDEO1", "VIDEO2", "Tie", "VIDEO1"]
    lines = ["sep=;", " PROMPT ;VIDEO1; Video2;WINNER;;", *(
        f'"{prompt}";C:\\Users\\me\\clips\\{first[6:]};clips\\{second[6:]};{winner};;'
        for prompt, first, second, winner in zip(prompts, FIRST, SECOND, winners, strict=True)
    ), ";;;;;", ";;;;;"]  # fmt: skip
    (folder / "excel_windows.csv").write_bytes("\r\n".join(lines).encode("cp1252"))
    table = ratings("Clip", "Rating")
    lines = ["Prompt;Clip;Rating", *(
        ";".join([f'"{prompt}"'.replace('"hi"', '""hi""'), clip, str(score).replace(".", ",")])
        for prompt, clip, score in zip(*table.values(), strict=True)
    )]  # fmt: skip
    (folder / "ratings_decimal_comma.csv").write_text("\n".join(lines), encoding="utf-8")
    won = chosen_and_rejected("winning_video", "losing_video")
    rows = zip(*won.values(), strict=True)
    (folder / "winning_and_losing.jsonl").write_text(
        "".join(json.dumps(dict(zip(won, row, strict=True))) + "\n" for row in rows)
    )


def main() -> None:
    import openpyxl
    import pandas
    import polars
    import pyarrow

    FOLDER.mkdir(parents=True, exist_ok=True)
    for write in (by_pandas, by_polars, by_libreoffice, by_hand):
        write(FOLDER)
    office = subprocess.run(
        ["soffice", "--version"], capture_output=True, text=True, check=True
    ).stdout.split()
    modules = {module.__name__: module.__version__ for module in (pandas, polars, openpyxl, pyarrow)}
    (FOLDER / "versions.json").write_text(json.dumps({**modules, "LibreOffice": office[1]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
