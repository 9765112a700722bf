"""Local paths in a record."""

from pathlib import Path

from runs.record.schema import Record


def without_paths(record: Record) -> Record:
    """The record with the last part of each local path only: where files lay is nobody's business, and proves
    nothing."""
    config = {**record["config"], "output": "outputs"}
    places = ("data_dir", "train_file", "dev_file", "cache_dir", "mt_bench_dir", "template")
    for part, keys in (("model", ("path",)), ("task", places)):
        config[part] = {k: Path(v).name if k in keys and v else v for k, v in config[part].items()}
    start = record.get("start")
    if start:
        config["init_from"] = Path(config["init_from"] or "").name
        start = {**start, "from": config["init_from"]}
    return {**record, "config": config, "start": start}
