"""What the scripts that compare attune with others have in common."""

import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def say(text):
    print(f"{Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)


def fail(text):
    say(text)
    sys.exit(1)


def run(command, **options):
    """Standard output of a command that has to succeed; progress bars and warnings are shown only if it does not."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode:
        fail(f"this failed: {' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def build(given, *programs):
    """Paths of `attune`, as people use it, and of programs that only the build with tests has, in the folder `given`
    or else built here."""
    if given:
        return [Path(given) / name for name in ("attune", *programs)]
    wanted = [("release", "attune-cli", "attune"), *(("check", name, name) for name in programs)]
    for preset, target, _ in wanted:
        say(f"building {target}")
        run(["cmake", "--preset", preset], cwd=ROOT)
        run(["cmake", "--build", "--preset", preset, "--target", target], cwd=ROOT)
    return [ROOT / "build" / preset / name for preset, _, name in wanted]


def base_model(given):
    return Path(given or run(["sh", ROOT / "script/fetch-model"]).strip()).resolve()


def make_environment(folder, packages, only_wheels=True):
    """A Python environment with these packages, installed with pip as pip is configured; what is there is reused."""
    python, complete = folder / "bin/python", folder / "complete"
    wanted = "\n".join(packages)
    if not complete.exists() or complete.read_text() != wanted:
        say("installing " + ", ".join(packages))
        run([sys.executable, "-m", "venv", folder])
        wheels = ["--only-binary", ":all:"] if only_wheels else ["--prefer-binary"]
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wheels, *packages])
        complete.write_text(wanted)
    return python


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.split(":", 1)[1].strip()
    return platform.machine()
