"""How a table's numbers were obtained, and how that differs from the paper."""

from collections.abc import Iterable, Sequence

from quantable.store.record import Record
from quantable.tables.schema import Table


def differences(table: Table, budget: str, kept: Sequence[Record]) -> list[str]:
    """What a reader must know before the numbers: how the runs differ from the paper's."""
    found = []
    if not kept:
        return []
    if budget != "paper":
        words = table.budgets.get(budget, ())  # type: ignore[call-overload]
        changed = f" (with {', '.join(words)})" if words else ""
        found.append(f"Budget {budget}, not the paper's size{changed}.")
    copies = dict.fromkeys(record.data.title for record in kept if record.data.variant)
    found += [f"{title} is not an exact copy of the paper's images." for title in copies]
    sizes = dict.fromkeys(_subset(record) for record in kept)
    found += [words for words in sizes if words]
    seeds = {record.seed for record in kept}
    wanted = len(table.seeds)
    if len(seeds) < wanted or len(seeds) == 1:
        of = f"of {wanted} seeds" if wanted > 1 else "seed"
        found.append(f"{len(seeds)} {of}, so little is known about the spread.")
    if any(not record.provenance.clean for record in kept):
        found.append("Some runs were made with uncommitted changes.")
    return found


def protocol(budget: str, kept: Sequence[Record]) -> list[tuple[str, str]]:
    """How the numbers were obtained, name by name."""
    found = [("budget", budget)]
    if not kept:
        return found
    found.append(("network", _several(str(network_of(record)) for record in kept)))
    for record in {record.data.sha256: record for record in kept}.values():
        sizes = ", ".join(f"{n:,} {name}" for name, n in record.data.sizes.items())
        found.append(("data", f"{record.data.title}: {sizes}; sha256 {record.data.sha256}"))
    found += _recipe(kept)
    found.append(("seeds", _several(str(r.seed) for r in sorted(kept, key=lambda r: r.seed))))
    found.append(("versions", _several(_versions(record) for record in kept)))
    commits = (_commit(record) for record in kept)
    found.append(("commits", _several(commits)))
    found.append(("devices", _several(_device(record) for record in kept)))
    hours = sum(record.provenance.wall_seconds for record in kept) / 3600
    found.append(("time", f"{hours:.1f} hours for {len(kept)} runs"))
    return found


def network_of(record: Record) -> str:
    """Name of a record's network, with its width where it is not whole."""
    name = record.config.get("model.net.name", record.config["model.name"])
    width = record.config.get("model.net.width", 1)
    return f"{name}" + (f", width {width:g}" if width != 1 else "")


def _subset(record: Record) -> str:
    """Say where a run saw fewer images than its set has."""
    cut = []
    for split, have in record.data.sizes.items():
        if record.config.get(f"data.{split}_images") is not None and split != "val":
            cut.append(f"{have:,} {split} images")
    return f"Only {' and '.join(cut)} of {record.data.title}." if cut else ""


def provenance(record: Record) -> list[tuple[str, str]]:
    """Where and how one run was made."""
    made = record.provenance
    return [
        ("record", f"records/{record.name}.json"),
        ("commit", _commit(record)),
        ("finished", made.finished.replace("T", " ").partition("+")[0].partition(".")[0] + " UTC"),
        ("device", _device(record)),
        (
            "time",
            f"{made.wall_seconds / 60:.1f} min"
            + f", resumed {made.resumed} times" * bool(made.resumed),
        ),
        ("data", f"{record.data.title}; sha256 {record.data.sha256}"),
    ]


def _device(record: Record) -> str:
    """What rounds a run's sums: equal answers to the last image need all of it to be equal."""
    made = record.provenance
    several = f"{made.devices} devices of " * (made.devices > 1)
    threads = f"{made.threads} thread{'s' if made.threads > 1 else ''}"
    libraries = (f"{name} {value}" for name, value in made.arithmetic.items())
    return ", ".join([several + made.device, threads, *libraries])


def _commit(record: Record) -> str:
    made = record.provenance
    return made.commit[:12] + ("" if made.clean else ", with uncommitted changes")


def _recipe(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Recipes of the runs, key by key; a key whose value differs lists all of them."""
    keys = dict.fromkeys(
        key for r in records for key in r.config if key.startswith("recipe.") and key[-1] != "_"
    )
    found = []
    for key in keys:
        values = dict.fromkeys(str(r.config[key]) for r in records if r.config.get(key) is not None)
        if values:
            found.append((key, ", ".join(values)))
    return found


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {number}" for name, number in record.provenance.versions.items())


def _several(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))
