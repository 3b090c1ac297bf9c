"""The model card: what a written file is, from what it holds and what its conversion measured."""

from typing import Any

from geopol_tkg.torch.clock import Clock

_NAMES = {"tirgn": "TiRGN", "regcn": "RE-GCN", "counts": "counts, a counting model"}
_PAPERS = {
    "tirgn": "Li, Sun and Zhao: TiRGN: Time-Guided Recurrent Graph Network with Local-Global Historical Patterns for "
    "Temporal Knowledge Graph Reasoning. IJCAI 2022.",
    "regcn": "Li et al.: Temporal Knowledge Graph Reasoning Based on Evolutional Representation Learning. SIGIR 2021.",
    "counts": "The model extends the baseline of Gastinger, Meilicke, Errica, Sztyler, Schuelke and Stuckenschmidt: "
    "History Repeats Itself: A Baseline for Temporal Knowledge Graph Forecasting. IJCAI 2024.",
}
_GDELT = (
    "The events are from the GDELT Project, <https://www.gdeltproject.org/>. GDELT data is free for any use and "
    "redistribution with a citation of the GDELT Project and a link to its site."
)
_LEARNED = {"train": "train", "valid": "train and valid, by a refit", "test": "all facts, by a refit"}
_METRICS = ("mrr", "hits_at_1", "hits_at_3", "hits_at_10", "mean_rank")


def model_card(contents: dict[str, Any], result: dict[str, Any], file_name: str) -> str:
    """Markdown, from the contents of a ``.pt`` and the result of its conversion."""
    sections = {
        f"Model card: {file_name}": _summary(contents, result),
        "Data": _data(contents),
        "Protocol": _PROTOCOL,
        "Metrics": _metrics(contents, result),
        "Agreement with the JAX model": _agreement(result),
        "Limits": _limits(contents),
        "Citation": _citation(contents),
    }
    headed = [f"{'#' if i == 0 else '##'} {title}\n\n{text}" for i, (title, text) in enumerate(sections.items())]
    return "\n\n".join(headed) + "\n"


def _learned(contents: dict[str, Any]) -> str:
    return _LEARNED[contents["training"]["settings"].get("through", "train")]


def _is_gdelt(contents: dict[str, Any]) -> bool:
    return contents["context"]["entity_kind"] != "given"


def _summary(contents: dict[str, Any], result: dict[str, Any]) -> str:
    config, model_type = contents["model_config"], contents["model_type"]
    rows = {
        "model": _NAMES[model_type] + (" beside a counting model" if config["count_prior"] else ""),
        "parameters": f"{result['num_parameters']:,}",
        "epoch": str(contents["epoch"]),
        "forecasts": contents["context"]["time"],
    }
    if model_type == "counts" or config["count_prior"]:
        rows["counts halve in"] = ", ".join(f"{life:g}" for life in config["half_lives"]) + " steps"
        rows["facts counted"] = "all"
        if config["num_countries"]:
            rows["countries told apart"] = f"{config['num_countries']:,}"
        if config["num_paths"]:
            rows["paths followed to"] = f"{config['num_paths']:,} entities of each subject"
    if model_type != "counts":
        rows["embedding dimension"] = str(config["embedding_dim"])
        rows["history length"] = f"{config['history_length']} snapshots"
    if model_type == "tirgn":
        window = config["history_window"]
        rows["history window"] = f"{window} steps" if window else "all history"
        rows["history rate"] = str(config["history_rate"])
    ranked = "entities" if model_type == "counts" else "entities (or relations)"
    intro = (
        f"Ranks the {ranked} that complete a fact *(subject, relation, object)* of the coming time step. "
        "Made by geopol-tkg; `geopol_tkg.torch.TKGPredictor` reads it."
    )
    return f"{intro}\n\n{_table(['', ''], [[name, value] for name, value in rows.items()])}"


def _data(contents: dict[str, Any]) -> str:
    context, trained = contents["context"], contents["training"]["dataset"]
    clock, counts = Clock.of(context), trained["counts"]
    last = context["facts"][-1, 3] if "facts" in context else context["snapshot_times"][-1]
    step = f"steps of {trained['granularity']}" if trained["granularity"] else "numbered steps"
    kinds = f"entities are labels of kind `{trained['entity']}`, relations of kind `{trained['relation']}`"
    lines = [
        f"Trained on dataset `{trained['content_hash']}`: {counts['facts']:,} facts, {counts['entities']:,} entities, "
        f"{counts['relations']:,} relations, {counts['timestamps']:,} timestamps, {step}; {kinds}.",
        f"Split by whole timestamps, in time order: train {counts['train']:,} facts, valid {counts['valid']:,} from "
        f"{clock.label(trained['valid_start'])}, test {counts['test']:,} from {clock.label(trained['test_start'])}. "
        f"Weights were fitted to {_learned(contents)}.",
        f"Forecasts look at the facts of dataset `{context['dataset']}` up to {clock.label(int(last))}.",
    ]
    if _is_gdelt(contents):
        lines[0] = "GDELT events. " + lines[0]
    return "\n\n".join(lines)


_PROTOCOL = (
    "Single-step: a forecast of time t depends on facts before t only. Every fact is asked for its object and for its "
    "subject; other true answers of the same query and time are no candidates (time-aware filter); ties get the mean "
    "rank; all entities are candidates; all queries count."
)


def _metrics(contents: dict[str, Any], result: dict[str, Any]) -> str:
    valid, full = contents["metrics"].get("valid"), result.get("full")
    measured = {
        "valid, by JAX at training": valid,
        "test, by PyTorch at conversion": full["metrics"] if full else None,
    }
    rows = [
        [name, *(_figure(row.get(metric)) for metric in ("num_queries", *_METRICS))]
        for name, row in measured.items()
        if row
    ]
    notes = [] if full else ["Test metrics were not measured by this conversion; `convert --full` does, and `eval`."]
    if full and full.get("overlaps_training"):
        notes.append("The model was trained on times of the test split: its figures there are no forecasts.")
    if not valid:
        notes.append("The checkpoint holds no validation.")
    return "\n\n".join([*([_table(["queries", "number", *_METRICS], rows)] if rows else []), *notes])


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _agreement(result: dict[str, Any]) -> str:
    text = (
        f"Largest difference of log-probabilities over {result['num_queries']} queries of the forecast step: "
        f"{result['max_abs_difference']:.2g} (tolerance {result['tolerance']:g})."
    )
    if full := result.get("full"):
        text += (
            f" Over all {full['num_queries']:,} queries of the test split: largest relative difference "
            f"{full['max_relative_difference']:.2g}, {full['rank_differences']} ranks differ, {full['beyond_ties']} of "
            f"them beyond ties; MRR {full['mrr']:.4f}, in JAX {full['mrr_jax']:.4f}."
        )
    return text


def _limits(contents: dict[str, Any]) -> str:
    sizes = len(contents["entity_to_id"]), len(contents["relation_to_id"])
    limits = [
        f"It knows {sizes[0]:,} entities and {sizes[1]:,} relations, by label. Others cannot be asked for, and are "
        "never an answer.",
        "A probability is a share among the candidates, given that such a fact takes place. It says nothing on "
        "whether it does.",
        f"It has learned from {_learned(contents)} only. Forecasts for later steps rest on newer facts, and weights "
        "age.",
        _calibration(contents["temperature"]),
    ]
    if _is_gdelt(contents):
        limits.append(
            "GDELT codes events by machine from news reports: a fact says that something was reported, not that it "
            "happened. What the press covers, and how, is in the forecasts."
        )
    return "\n".join(f"- {limit}" for limit in limits)


def _calibration(temperature: dict[str, Any] | None) -> str:
    if temperature is None:
        return "Probabilities are not calibrated on outcomes; the metrics above are about ranks."
    return (
        f"Probabilities of entities are read with temperature {temperature['value']:.4f}, fitted on "
        f"{temperature['num_queries']:,} {temperature['split']} queries (negative log-likelihood "
        f"{temperature['nll_before']:.4f} before, {temperature['nll_after']:.4f} after). How far they are what "
        "happens, `eval` tells; the metrics above are about ranks."
    )


def _citation(contents: dict[str, Any]) -> str:
    model_type, has_prior = contents["model_type"], contents["model_config"]["count_prior"]
    papers = [_PAPERS[model_type], *([_PAPERS["counts"]] if has_prior else [])]
    return "\n\n".join([*papers, *([_GDELT] if _is_gdelt(contents) else [])])


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
