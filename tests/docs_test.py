#!/usr/bin/env python3
"""The pages say what is true: messages are in the sources, links lead somewhere, variables and flags exist, figures agree, one version.

    tests/docs_test.py [PROGRAM]      PROGRAM: kvturbo, whose --help is asked for the flags; without it they are not checked
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [p for folder in ("plugin", "cli", "src", "include", "python", "scripts", "cmake", "tests") for p in (ROOT / folder).rglob("*")
           if p.suffix in (".cc", ".h", ".hpp", ".cu", ".py", ".sh", ".txt", ".cmake", ".in")]  # fmt: skip

failures = []


def expect(condition, page, what):
    if not condition:
        failures.append(f"{page.relative_to(ROOT)}: {what}")


def string_literals(text):
    """Of C++: adjacent ones joined, escapes undone."""
    literal = r'"(?:[^"\\\n]|\\.)*"'
    for match in re.finditer(rf"{literal}(?:\s*{literal})*", text):
        yield "".join(part[1:-1] for part in re.findall(literal, match.group())).replace('\\"', '"').replace("\\n", "\n")


def check_messages():
    page = ROOT / "docs/troubleshooting.md"
    literals = [s for path in SOURCES if path.suffix in (".cc", ".h") and path.parts[len(ROOT.parts)] in ("plugin", "cli")
                for s in string_literals(path.read_text())]  # fmt: skip
    # A format string is as good as its pieces.
    pieces = [piece for literal in literals for piece in re.split(r"\{[^{}]*\}", literal)]
    # What begins a line of the list, up to the next sentence: one or more messages.
    messages = [m[0] or m[1] for m in re.findall(r"^- (?:``(.+?)``|`([^`]+)`)", page.read_text(), re.MULTILINE)]
    expect(len(messages) > 25, page, f"only {len(messages)} messages found")
    for message in messages:
        for fragment in filter(None, (part.strip() for part in re.split(r"…", message))):
            found = any(fragment in piece for piece in pieces)
            expect(found or len(fragment) < 2, page, f"no message has: {fragment}")


def check_links():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if "://" not in target:
                expect((page.parent / target).exists(), page, f"link to {target}, which is not there")


def check_variables():
    known = set(re.findall(r"KVTURBO_[A-Z0-9_]+", "".join(p.read_text() for p in SOURCES) + (ROOT / "CMakeLists.txt").read_text()))
    options = (ROOT / "plugin/plugin_options.cc").read_text()
    for names in re.findall(r"k(?:Program)?Variables\[\] = \{([^}]*)\}", options):
        known |= {"KVTURBO_" + name for name in re.findall(r'"(\w+)"', names)}
    for page in PAGES:
        for name in set(re.findall(r"KVTURBO_[A-Z0-9_]+", page.read_text())):
            expect(name in known, page, f"{name}, which nothing reads")


def check_flags(program):
    """Each `kvturbo COMMAND ... --flag` in a block of commands: the command's --help has the flag."""
    helps = {}
    for page in PAGES:
        for block in re.findall(r"^```sh.*?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.findall(r"(?:^|[\s/;])kvturbo ((?:run|serve|doctor|models|estimate|bench|eval)\b[^;|>#]*)", line):
                    words = re.sub(r'"[^"]*"', "TEXT", command).split(" -- ")[0].split()
                    chosen = words[:2] if words[0] == "bench" else words[:1]
                    key = " ".join(chosen)
                    if key not in helps:
                        result = subprocess.run([program, *chosen, "--help"], capture_output=True, text=True)
                        expect(result.returncode == 0, page, f"kvturbo {key}: no such command")
                        helps[key] = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", result.stdout))
                    for word in words:
                        flag = word.split("=")[0]
                        if re.match(r"--?[a-zA-Z]", flag):
                            expect(flag in helps[key], page, f"kvturbo {key} has no {flag}")
    expect(len(helps) > 6, ROOT / "README.md", "too few commands found")


def table_rows(text):
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


def check_figures():
    """docs/codecs.md repeats figures of docs/quality.md."""
    measured = {}
    for section in re.split(r"^### ", (ROOT / "docs/quality.md").read_text(), flags=re.MULTILINE)[1:]:
        if not section.splitlines()[0].endswith(" x 1024 tokens"):
            continue
        model, text = (part.strip() for part in section.splitlines()[0].split(",")[:2])
        for row in table_rows(section):
            measured[model, text, row[0]] = [cell.split(" ±")[0] for cell in row]
    page = ROOT / "docs/codecs.md"
    n_rows = 0
    for row in table_rows(page.read_text()):
        cache = row[0].removeprefix("stock `").strip("`")
        if len(row) != 7 or cache == "cache" or ("smollm2-135m", "english", cache) not in measured:
            continue
        n_rows += 1
        small = measured["smollm2-135m", "english", cache]
        expect(row[1] == small[1] and row[2] == small[2] and row[6] == small[7] + " %", page, f"{cache}: bits, bytes or same top token")
        for column, model in ((3, "smollm2-135m"), (4, "gemma3-270m"), (5, "qwen2.5-coder-0.5b")):
            expect(row[column] == measured[model, "english", cache][3], page, f"{cache}, {model}: {row[column]}")
    expect(n_rows >= 11, page, f"only {n_rows} rows of figures found")


def check_version():
    version = re.search(r"project\(kvturbo VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    header = (ROOT / "include/kvturbo/kvturbo.h").read_text()
    parts = [re.search(rf"KVT_VERSION_{part} (\d+)", header).group(1) for part in ("MAJOR", "MINOR", "PATCH")]
    expect(".".join(parts) == version, ROOT / "include/kvturbo/kvturbo.h", f"not version {version}")
    first = re.search(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE).group(1)
    expect(first == version, ROOT / "CHANGELOG.md", f"its newest version is {first}, not {version}")
    for page in PAGES:
        for name in re.findall(r"kvturbo-([0-9]+\.[0-9]+\.[0-9]+)-", page.read_text()):
            expect(name == version, page, f"a package of version {name}")


check_messages()
check_links()
check_variables()
check_figures()
check_version()
if len(sys.argv) > 1:
    check_flags(sys.argv[1])
for failure in failures:
    print("FAILED:", failure)
print(f"{len(failures)} failures" if failures else "passed")
sys.exit(bool(failures))
