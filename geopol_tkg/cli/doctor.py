"""``geopol-tkg doctor``: what is installed, what there is to run on, and whether each model trains."""

from typing import Any

from geopol_tkg.cli import _options as opt
from geopol_tkg.cli._app import JsonFlag, Output, QuietFlag, VerboseFlag, app, new_table, plain
from geopol_tkg.errors import GeopolTkgError


@app.command("doctor")
def command(
    device: opt.DeviceOption = "auto",
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Describe the installation, ready to paste into an issue, and train each model for one step.

    What is missing is a line. The exit code is 1 when a package cannot be imported, the device asked for
    is not there, or a model does not train.
    """
    from geopol_tkg.doctor import Finding, examine

    output = Output(json=json, quiet=quiet, verbose=verbose)
    findings = []
    try:
        opt.choose_device(device)
    except GeopolTkgError as error:
        findings.append(Finding("devices", f"--device {device}", f"FAILED: {error}", passed=False))
    findings += examine(progress=output.note)
    sections: dict[str, dict[str, Any]] = {}
    for finding in findings:
        sections.setdefault(finding.section, {})[finding.name] = finding.value
    table = new_table("", "")
    table.columns[1].justify = "left"
    for section, values in sections.items():
        table.add_row(section, "")
        for name, value in values.items():
            table.add_row(f"  {plain(name)}", plain(value))
    failed = [finding.name for finding in findings if not finding.passed]
    verdict = f"FAILED: {', '.join(failed)}" if failed else "all is well"
    content = {name.replace(" ", "_"): values for name, values in sections.items()}
    output.result({"passed": not failed, "failed": failed, **content}, "```text", table, verdict, "```")
    if failed:
        raise GeopolTkgError(f"{len(failed)} of what must work does not: {', '.join(failed)}; stdout says why")
