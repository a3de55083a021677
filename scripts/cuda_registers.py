#!/usr/bin/env python3
"""What ptxas makes of every kernel: registers, spills, stack and shared memory for each architecture.

    scripts/cuda_registers.py            compiles, and compares with the kept table (tests/cuda/registers.md)
    scripts/cuda_registers.py --write    compiles, and keeps the new table

Fails where a kernel spills, where one needs more than 8 registers above the kept table's, and where kernel or
architecture are not in both. Static shared memory is compared exactly: it belongs to the source. nvcc is $NVCC, or
$CUDA_HOME/bin/nvcc, or the one on the path; flags and architectures are read out of scripts/build.rs, so that the table
is of the code that a build embeds. Another nvcc may give other numbers: the table names its own.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/cuda/registers.md"
SLACK = 8  # registers a kernel may gain before someone has to look


def settings():
    """Architectures and flags of scripts/build.rs."""
    source = (ROOT / "scripts/build.rs").read_text()
    architectures = re.search(r"const ARCHITECTURES[^=]*= \[([^\]]*)\]", source).group(1)
    flags = re.search(r'command\.args\(\[("-fatbin"[^\]]*)\]\)', source).group(1)
    return re.findall(r'"(\d+)"', architectures), [flag for flag in re.findall(r'"([^"]+)"', flags) if flag != "-fatbin"]


def nvcc():
    home = os.environ.get("CUDA_HOME")
    found = os.environ.get("NVCC") or (home and f"{home}/bin/nvcc") or shutil.which("nvcc")
    if not found:
        sys.exit('no nvcc: set CUDA_HOME, or run `eval "$(scripts/cuda-toolchain.sh)"` first')
    return found


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def measure(compiler, flags, source, architecture):
    """Kernel to (registers, spilled bytes, stack bytes, shared bytes)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-cubin", f"-arch=sm_{architecture}", *flags, "-Xptxas", "-v", "-o", f"{folder}/out.cubin", str(source)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"nvcc could not compile {source} for sm_{architecture}:\n{run.stderr}")
    kernels = {}
    for part in run.stderr.split("Compiling entry function '")[1:]:
        name, text = part.split("'", 1)
        spilled = number(r"(\d+) bytes spill stores", text) + number(r"(\d+) bytes spill loads", text)
        kernels[name] = (
            number(r"Used (\d+) registers", text), spilled, number(r"(\d+) bytes stack", text),
            number(r"(\d+) bytes smem", text))
    if len(kernels) != source_kernels(source):
        sys.exit(f"{source}: ptxas names {len(kernels)} kernels, the source {source_kernels(source)}")
    return kernels


def source_kernels(source):
    """How many kernels a source defines: those a macro makes for a size count once a size."""
    text = (ROOT / source).read_text()
    sizes = len(re.findall(r"^ATTENTION_OF\(", text, re.M))
    names = re.findall(r"KERNEL __launch_bounds__\(\w+\) ([\w#]+)\(", text)
    return sum(sizes if "##" in name else 1 for name in names)


def measure_all():
    architectures, flags = settings()
    compiler = nvcc()
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "src").rglob("*.cu"))
    jobs = [(source, architecture) for source in sources for architecture in architectures]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda job: measure(compiler, flags, *job), jobs))
    table = {}
    for (source, architecture), kernels in zip(jobs, results):
        for name, numbers in kernels.items():
            table.setdefault(name, {})[architecture] = numbers
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    return architectures, table, re.search(r"V([\d.]+)", version).group(1)


def as_markdown(architectures, table, version):
    lines = [
        "# Registers of the kernels", "",
        f"What ptxas {version} says: registers a thread / spilled bytes / stack bytes / static shared bytes. Made by",
        "`scripts/cuda_registers.py --write`, compared by `scripts/check.sh`. Dynamic shared memory is asked for at launch.", "",
        "| kernel | " + " | ".join(f"sm_{architecture}" for architecture in architectures) + " |",
        "|---" * (len(architectures) + 1) + "|"]
    for name in sorted(table):
        cells = [" / ".join(map(str, table[name][architecture])) for architecture in architectures]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def kept():
    """The kept table, as `measure_all` gives it."""
    table, architectures = {}, []
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "kernel":
            architectures = [cell.removeprefix("sm_") for cell in cells[1:]]
        elif architectures and not cells[0].startswith("-"):
            table[cells[0]] = {a: tuple(map(int, cell.split(" / "))) for a, cell in zip(architectures, cells[1:])}
    return table


def differences(table, before):
    for name in sorted(table.keys() | before.keys()):
        for architecture in sorted(table.get(name, {}).keys() | before.get(name, {}).keys()):
            now, then = table.get(name, {}).get(architecture), before.get(name, {}).get(architecture)
            where = f"{name} for sm_{architecture}"
            if now is None or then is None:
                yield f"{where}: only in {'the sources' if then is None else 'the kept table'}"
                continue
            if now[0] > then[0] + SLACK:
                yield f"{where}: {now[0]} registers, {then[0]} before"
            if now[2] > then[2]:
                yield f"{where}: {now[2]} bytes of stack, {then[2]} before"
            if now[3] != then[3]:
                yield f"{where}: {now[3]} bytes of shared memory, {then[3]} before"


def main():
    if sys.argv[1:] not in ([], ["--write"]):
        sys.exit("usage: scripts/cuda_registers.py [--write]")
    architectures, table, version = measure_all()
    wrong = [f"{name} for sm_{a}: spills {numbers[1]} bytes" for name in sorted(table)
             for a, numbers in table[name].items() if numbers[1]]
    if sys.argv[1:]:
        TABLE.write_text(as_markdown(architectures, table, version))
    else:
        wrong += differences(table, kept())
    if wrong:
        sys.exit("\n".join(wrong) + "\nwhat is meant: scripts/cuda_registers.py --write keeps a new table (never a spill)")
    print(f"{len(table)} kernels for {len(architectures)} architectures: no spills, registers as kept")


main()
