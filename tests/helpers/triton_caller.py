"""tritonclient, in a Python of its own: it wants an older protobuf, and its messages clash with the server's.

`Triton` runs this file as a program there: calls go in as JSON, what came of each comes out as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

PYTHON = Path(__file__).resolve().parents[2] / ".venv-triton" / "bin" / "python"
TIMEOUT_SECONDS = 60


class Triton:
    """An unmodified tritonclient at one target.

    Args:
        target: host and port.
    """

    def __init__(self, target: str) -> None:
        assert PYTHON.exists(), f"{PYTHON} is missing; `make test` makes it"
        self._target = target

    def __call__(self, *calls: dict[str, Any]) -> list[dict[str, Any]]:
        """Make calls, one after the other.

        A call is `{"rows": array, ...}` or `{"ask": method of the client, ...}`; the rest are arguments of `_infer` or
        of that method. A result is `{"outputs": arrays, "response": message}`, `{"answer": ...}` or `{"error": [...]}`.
        """
        request = json.dumps([self._target, calls], default=lambda a: [a.dtype.str, a.shape, a.tobytes().hex()])
        done = subprocess.run(
            [PYTHON, __file__],
            input=request,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            env={**os.environ, "no_grpc_proxy": "127.0.0.1"},
        )
        assert done.returncode == 0, done.stderr
        results = json.loads(done.stdout)
        for result in results:
            for name, packed in result.get("outputs", {}).items():
                result["outputs"][name] = _unpack(packed)
        return results


def _unpack(packed: list[Any]) -> np.ndarray:
    dtype, shape, data = packed
    return np.frombuffer(bytes.fromhex(data), dtype).reshape(shape)


def _inputs(triton: Any, rows: np.ndarray, name: str) -> list[Any]:
    from tritonclient.utils import np_to_triton_dtype

    tensor = triton.InferInput(name, rows.shape, np_to_triton_dtype(rows.dtype))
    return [tensor.set_data_from_numpy(rows)]


def _infer(target: str, rows: list[Any], *, how: str = "sync", input: str = "input", **options: Any) -> dict[str, Any]:
    import tritonclient.grpc as triton

    outputs = options.pop("outputs", None)
    arguments = {
        "model_name": options.pop("model", "standin"),
        "inputs": _inputs(triton, _unpack(rows), input),
        "outputs": None if outputs is None else [triton.InferRequestedOutput(*o) for o in outputs],
        **options,
    }
    if how == "aio":
        result = asyncio.run(_infer_aio(target, arguments))
    else:
        with triton.InferenceServerClient(target) as client:
            if how == "sync":
                result = client.infer(**arguments)
            else:
                answers: SimpleQueue[Any] = SimpleQueue()
                client.async_infer(**arguments, callback=lambda result, error: answers.put(error or result))
                result = answers.get(timeout=TIMEOUT_SECONDS)
    response = result.get_response()
    arrays = {o.name: result.as_numpy(o.name) for o in response.outputs}
    return {
        "outputs": {name: [a.dtype.str, a.shape, a.tobytes().hex()] for name, a in arrays.items()},
        "parameters": {k: getattr(p, p.WhichOneof("parameter_choice")) for k, p in response.parameters.items()},
        "response": [response.model_name, response.model_version, response.id],
    }


async def _infer_aio(target: str, arguments: dict[str, Any]) -> Any:
    import tritonclient.grpc.aio as triton

    async with triton.InferenceServerClient(target) as client:
        return await client.infer(**arguments)


def _ask(target: str, ask: str, **arguments: Any) -> dict[str, Any]:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(target) as client:
        return {"answer": getattr(client, ask)(**arguments)}


def _softkin(target: str, softkin: list[Any]) -> dict[str, Any]:
    from softkin.client import Client

    with Client(target) as client:
        scores = client.score(_unpack(softkin))
    return {"outputs": {"p_value": [scores.p_value.dtype.str, scores.p_value.shape, scores.p_value.tobytes().hex()]}}


def _call(target: str, call: dict[str, Any]) -> dict[str, Any]:
    from tritonclient.utils import InferenceServerException

    function = _ask if "ask" in call else _softkin if "softkin" in call else _infer
    try:
        return function(target, **call)
    except InferenceServerException as e:
        return {"error": [e.status(), e.message()]}


if __name__ == "__main__":
    where, what = json.load(sys.stdin)
    json.dump([_call(where, call) for call in what], sys.stdout)
