"""Scores of a written file, read in a fresh process: ``python -m geopol_tkg.torch.reload FILE IN.npy OUT.npy``."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from geopol_tkg.errors import GeopolTkgError


def fresh_scores(path: Path, queries: np.ndarray) -> np.ndarray:
    """Log-probabilities [b, n] of queries int64 [b, 2], by a process that knows the file alone.

    Raises:
        GeopolTkgError: that process failed.
    """
    asked, answered = (path.with_name(f"{path.name}.{name}.npy") for name in ("queries", "scores"))
    np.save(asked, queries.astype(np.int64))
    command = [sys.executable, "-m", __name__, str(path), str(asked), str(answered)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise GeopolTkgError(f"{path.name} was written, but a fresh process cannot use it: {reason}")
    return np.load(answered)


def scores(path: Path, subjects: np.ndarray, relations: np.ndarray) -> np.ndarray:
    """Log-probabilities [b, n] by what the file's suffix asks for."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, {"subjects": subjects, "relations": relations})[0]
    if path.suffix == ".pt2":
        import torch

        program = torch.export.load(path).module()
        with torch.inference_mode():
            return program(torch.from_numpy(subjects), torch.from_numpy(relations)).numpy()
    from geopol_tkg.torch.predictor import TKGPredictor

    return TKGPredictor(path, device="cpu").log_probabilities(subjects, relations)


if __name__ == "__main__":
    file, asked, answered = map(Path, sys.argv[1:])
    np.save(answered, scores(file, *np.ascontiguousarray(np.load(asked).T)))
