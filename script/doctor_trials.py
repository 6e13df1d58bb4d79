"""The checks of ``doctor.py`` that are tried in a child process (``doctor_probe.py``): importing, and drawing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from script.doctor_checks import BAD, GIB, NOTE, OK, ROOT, SET_UP, WARN, Finding, writable

DEADLINE = 12.0  # s, for a child process; the whole takes little longer
NATIVE = "native"  # this project's own renderer, beside OpenGL's back ends
RENDERERS = "libegl1 libgles2 libgl1-mesa-dri libosmesa6"


def run_probe(arguments: list[str], environment: Mapping[str, str], deadline: float) -> tuple[list[dict], str]:
    """What ``doctor_probe.py`` said (JSON lines), and what went wrong (empty: nothing). Killed at the deadline (s)."""
    command = [sys.executable, str(ROOT / "script" / "doctor_probe.py"), *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment), start_new_session=True
        )
        try:
            code = child.wait(deadline)
            error = f"ended with code {code}" if code else ""
        except subprocess.TimeoutExpired:
            error = f"no answer within {deadline:g} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, 9) if hasattr(os, "killpg") else child.kill()
                child.wait()
        out.seek(0)
        err.seek(0)
        said = [line for line in err.read().decode(errors="replace").splitlines() if line.strip()]
        lines = out.read().decode(errors="replace").splitlines()
    facts = []
    for line in lines:
        try:
            facts.append(json.loads(line))
        except ValueError:  # a package that prints, or a line cut short by the deadline
            continue
    if error.startswith("ended") and said:
        error = said[-1].strip()
    return [f for f in facts if isinstance(f, dict)], error


def imports(deadline: float = DEADLINE) -> list[Finding]:
    """Do the packages import, which GPUs does torch see, are the kernels compiled?"""
    facts, error = run_probe(["imports"], os.environ, deadline)
    findings, broken = [], [f for f in facts if "package" in f and "error" in f]
    for fact in broken:
        mend = "apt-get install libgl1" if "libGL" in fact["error"] else SET_UP
        findings.append(Finding("software", f"import {fact['package']}", BAD, fact["error"], mend))
    good = [f for f in facts if "package" in f and "error" not in f]
    if good and not broken and not error:
        slowest = max(good, key=lambda f: f["seconds"])
        said = f"{len(good)} packages in {sum(f['seconds'] for f in good):.1f} s, longest {slowest['package']}"
        findings.append(Finding("software", "imports", OK, said))
    if error:
        late = error.startswith("no answer")
        said = f"{error} after {', '.join(f['package'] for f in good) or 'nothing'} had been imported"
        mend = "try again when the machine is less busy" if late else SET_UP
        findings.append(Finding("software", "imports", WARN if late else BAD, said, mend))
    parts = {f["part"]: f for f in facts if "part" in f}
    return [*findings, *_gpus(parts.get("gpus")), *_kernels(parts.get("kernels"))]


def _gpus(fact: dict | None) -> list[Finding]:
    if fact is None or "error" in fact:
        return []
    if fact["gpus"]:
        names = [f"{g['name']} ({g['memory'] / GIB:.0f} GiB)" for g in fact["gpus"]]
        return [Finding("machine", "GPU", OK, ", ".join(names))]
    if shutil.which("nvidia-smi"):
        why = "built for the CPU" if not fact["built_for_cuda"] else f"built for CUDA {fact['built_for_cuda']}"
        said = f"nvidia-smi is here, but torch ({why}) sees no GPU"
        return [Finding("machine", "GPU", WARN, said, "install a torch for your driver: pytorch.org, 'Get Started'")]
    return [Finding("machine", "GPU", OK, "none: everything runs on the CPU")]


def _kernels(fact: dict | None) -> list[Finding]:
    if fact is None:
        return []
    if "error" in fact:
        return [Finding("machine", "compiled kernels", WARN, fact["error"], SET_UP)]
    folder = Path(fact["folder"])
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not writable(existing):
        said = f"{existing} is not writable: kernels are compiled anew at every start (10 s)"
        return [Finding("machine", "compiled kernels", WARN, said, "export NUMBA_CACHE_DIR=<a folder of yours>")]
    said = (
        f"ready in {folder}"
        if fact["compiled"]
        else f"not yet in {folder}: the first start compiles them (10 s or more)"
    )
    return [Finding("machine", "compiled kernels", OK if fact["compiled"] else NOTE, said)]


def render_backend(backend: str, deadline: float = DEADLINE) -> Finding:
    """Draw with ``backend`` (NATIVE, "egl", "osmesa"; empty: MuJoCo's own choice) and say how long an image takes."""
    environment, native = dict(os.environ, LP_NUM_THREADS="0"), backend == NATIVE
    if backend and not native:
        environment |= {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    facts, error = run_probe([NATIVE if native else "render"], environment, deadline)
    name = backend or "default"
    if error or not facts:
        return Finding("rendering", name, NOTE, f"does not work: {error or 'it said nothing'}"[:160])
    fact = facts[-1]
    if fact["ms"] is None:
        return Finding("rendering", name, OK, fact["renderer"])
    return Finding(
        "rendering", name, OK, f"{fact['ms']:.1f} ms per 96x96 image of a small scene ({fact['renderer'] or '?'})"
    )


def backends(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Those to try, in the order in which runs do: see ``env/video.py``."""
    if not sys.platform.startswith("linux"):
        return ("",)
    chosen = environment.get("MUJOCO_GL", "").lower()
    return tuple(dict.fromkeys(b for b in (chosen, "egl", "osmesa") if b in ("egl", "osmesa")))


def rendering(tried: list[Finding], environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """The verdict on all that was tried: what will draw videos, or what to install."""
    working = [finding for finding in tried if finding.status == OK]
    chosen = environment.get("MUJOCO_GL", "")
    first = next((f.item for f in working if f.item != NATIVE), NATIVE)
    if not working:
        late = all("no answer" in finding.found for finding in tried)
        mend = "try again when the machine is less busy" if late else _install(RENDERERS)
        verdict = Finding(
            "rendering", "images and videos", WARN, "nothing can draw here: state policies only, no videos", mend
        )
    elif chosen and chosen.lower() not in ("egl", "osmesa"):
        said = f"MUJOCO_GL={chosen} is not one for servers; videos are drawn with {first}"
        verdict = Finding("rendering", "images and videos", NOTE, said, "unset MUJOCO_GL")
    else:
        told = "" if first != NATIVE else "; policies that were trained on OpenGL's images see native's here"
        verdict = Finding("rendering", "images and videos", OK, f"videos are drawn with {first}{told}")
    return [*tried, verdict]


def lift_images(working: list[str], deadline: float = 180.0) -> list[Finding]:
    """What Lift's images cost, in every quality, by our own renderer and by the first OpenGL that is ``working`` (takes a minute)."""
    findings = []
    for renderer in sorted({NATIVE if name == NATIVE else "gl" for name in working}, reverse=True):
        for quality in ("faithful", "balanced", "fast"):
            facts, error = run_probe(["lift", quality, renderer], os.environ, deadline)
            said = f"{facts[-1]['ms']:.1f} ms per 96x96 image of Lift's wrist camera" if facts and not error else error
            findings.append(Finding("rendering", f"{renderer}, {quality}", OK if facts and not error else WARN, said))
    return findings


def _install(libraries: str) -> str:
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if shutil.which("apt-get"):
        return f"{'' if root else 'sudo '}apt-get install -y {libraries}"
    return "install EGL or OSMesa (on Debian: " + libraries + ")"
