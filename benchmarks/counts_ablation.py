"""What each part of the counting model is worth: valid MRR without it.

    python benchmarks/counts_ablation.py --dataset DIR
    python benchmarks/counts_ablation.py --dataset DIR --epochs 3 --only full without-triples
    python benchmarks/counts_ablation.py --dataset DIR --countries

DIR is what ``geopol-tkg ingest`` wrote. Every variant is trained anew for the same epochs with the same seed and
measured on the valid split after each; the test split is not read. A part is taken away by counting nothing for it:
its features are those of what never happened. With --countries all but one, which is left out otherwise, tell the
countries apart that labels name. Prints one JSON object: for each variant the valid MRR, times 100, after each epoch,
and the best of them; the seconds that an epoch took, validation included.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from measure import choose_machine, report
from settings import dataset_directory

SHORT, LONG = (1.0, 4.0), (16.0, 64.0)


def main() -> None:
    variants = list(VARIANTS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=dataset_directory, required=True, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--countries", action="store_true", help="as train --countries")
    parser.add_argument("--only", nargs="+", choices=variants, default=variants, metavar="VARIANT", help=str(variants))
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.countries:
        arguments.only = [name for name in arguments.only if name != "without-countries"]
    choose_machine(arguments.device, arguments.threads)
    results = {name: train(name, arguments) for name in arguments.only}
    report("counts_ablation", dataset=str(arguments.dataset), epochs=arguments.epochs, variants=results)


def train(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Valid MRR after each epoch of a variant."""
    import jax
    from flax import nnx

    from geopol_tkg.config import ModelConfig, TrainConfig
    from geopol_tkg.data.countries import Countries
    from geopol_tkg.data.dataset import Dataset
    from geopol_tkg.evaluation.evaluator import evaluate
    from geopol_tkg.models.count_forecaster import CountContext
    from geopol_tkg.models.registry import build_forecaster
    from geopol_tkg.training.loop import Standing, fit
    from geopol_tkg.training.prepare import prepare
    from geopol_tkg.training.run import resolve

    dataset = Dataset.load(arguments.dataset)
    settings, without = VARIANTS[name]
    sizes = {"num_entities": dataset.num_entities, "num_relations": dataset.num_relations}
    if arguments.countries:
        countries = Countries.from_labels(dataset.entities, entity_kind=dataset.entity_kind)
        if not countries.names:
            raise SystemExit("--countries: no two labels name one country")
        sizes["num_countries"] = len(countries.names)
    model = ModelConfig(**{"model_type": "counts", **sizes, **settings})
    context = CountContext.build(dataset, model)
    context.tables = without(context.tables)
    given = TrainConfig(epochs=arguments.epochs, lr=arguments.lr, seed=arguments.seed)
    config = resolve(given, jax.devices()[0], "counts")
    plan, trainer, state, data = prepare(dataset, None, context, model=model, config=config)

    def validate(state: Any) -> dict[str, Any]:
        parts = nnx.split(nnx.merge(trainer.graphdef, state.parameters, state.statistics))
        forecaster = build_forecaster(*parts, config=model, context=context, name=name)
        return evaluate(forecaster, dataset, split="valid").metrics()

    results = fit(
        trainer,
        state,
        plan=plan,
        data=data,
        config=config,
        evaluate=validate,
        standing=Standing(),
        should_stop=lambda: None,
        on_step=lambda _done: None,
    )
    started = time.perf_counter()
    mrr = [round(100 * result.metrics["mrr"], 2) for result in results if result.metrics is not None]
    seconds = (time.perf_counter() - started) / len(mrr)
    return {"best": max(mrr), "valid_mrr": mrr, "seconds_per_epoch": round(seconds, 1)}


def _everything(tables: Any) -> Any:
    return tables


def _without(*names: str) -> Callable[[Any], Any]:
    """Tables in which some things never happened."""

    def take_away(tables: Any) -> Any:
        return tables._replace(**{name: _never(getattr(tables, name)) for name in names})

    return take_away


def _never(occurrences: Any) -> Any:
    return occurrences._replace(starts=occurrences.starts * 0)


def _one_relation(tables: Any) -> Any:
    """Tables that do not know which relation the last fact between two had."""
    return tables._replace(
        outgoing_relations=tables.outgoing_relations * 0, incoming_relations=tables.incoming_relations * 0
    )


VARIANTS: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "full": ({}, _everything),
    "without-triples": ({}, _without("triple_counts")),
    "without-meetings": ({}, _without("outgoing", "incoming")),
    "without-incoming": ({}, _without("incoming")),
    "without-answers": ({}, _without("answer_counts")),
    "without-rows": ({}, _without("rows")),
    "without-entities": ({}, _without("entities")),
    "without-last-relation": ({}, _one_relation),
    "without-countries": ({"num_countries": 0}, _everything),
    "short-half-lives": ({"half_lives": SHORT}, _everything),
    "long-half-lives": ({"half_lives": LONG}, _everything),
    "more-half-lives": ({"half_lives": (*SHORT, *LONG, 256.0)}, _everything),
}


if __name__ == "__main__":
    main()
