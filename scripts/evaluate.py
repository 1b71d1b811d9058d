"""Adapter from the rule `evaluate` to `unet.stages.evaluate`."""

from pathlib import Path

from unet.console import report_to
from unet.sources.base import SourceSpec
from unet.stages import evaluate
from unet.storage.workspace import Workspace

if __name__ == "__main__":
    with report_to(snakemake.log[0]):
        evaluations = [
            evaluate.Evaluation(
                workspace=Workspace(Path("results", item["name"])),
                image=SourceSpec(**item["source"]),
                label=SourceSpec(**item["label"]),
                annotated=item["annotated"] and SourceSpec(**item["annotated"]),
                values=item["values"] and tuple(item["values"]),
                measures=tuple(item["measures"]),
            )
            for item in snakemake.params.evaluations
        ]
        evaluate.run(evaluations, Path(snakemake.output.table), Path(snakemake.output.page))
