"""The library by pip under a name of its own, the registry's metadata, the workflows, and names that Windows takes."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import PurePosixPath

import pytest
import yaml

from harness.server import ROOT
from tests.published import files_of_the_repository, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_pip_installs_the_library_under_a_name_that_cannot_clash(site, tmp_path):
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"safety_directions"}
    program = "import safety_directions as d; print(d.load('smollm2-135m-instruct').categories, d.__file__)"
    told = run(sys.executable, "-c", program, cwd=tmp_path, variables={"PYTHONPATH": str(site)})
    assert "'violence'" in told and str(site) in told


def test_the_installed_command_line_goes_by_its_own_name(site, tmp_path):
    told = run(sys.executable, "-m", "safety_directions", "--help", cwd=tmp_path, variables={"PYTHONPATH": str(site)})
    assert "python -m safety_directions show" in told and "-m directions" not in told


def test_the_installed_library_holds_the_prompts_it_estimates_from(site, tmp_path):
    program = (
        "from safety_directions.prompts import read_pairs, read_anchors; print(len(read_pairs()), len(read_anchors()))"
    )
    pairs, anchors = map(
        int, run(sys.executable, "-c", program, cwd=tmp_path, variables={"PYTHONPATH": str(site)}).split()
    )
    assert pairs > 1000 and anchors > 1000


def test_no_module_needs_an_optional_extra_to_be_imported():
    modules = [
        name[:-3].replace("/", ".").removesuffix(".__init__")
        for name in files_of_the_repository()
        if name.startswith("directions/") and name.endswith(".py")
    ]
    library = [module for module in modules if not module.endswith("__main__")]
    program = f"import importlib; [importlib.import_module(name) for name in {library}]"
    run(sys.executable, "-c", program, cwd=ROOT, variables={"PYTHONPATH": str(ROOT / "tests" / "without_extras")})


def test_the_pack_asks_comfyui_for_nothing_to_install(project):
    assert project["project"]["dependencies"] == []
    assert not {"requirements.txt", "install.py", "prestartup_script.py"} & set(files_of_the_repository())


def test_the_metadata_is_what_the_registry_wants(project):
    name, comfy = project["project"]["name"], project["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", name) and "comfyui" not in name
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    assert comfy["DisplayName"] and "comfyui" not in comfy["DisplayName"].lower()
    for picture in ("Icon", "Banner"):
        # Each address ends in a file that is here.
        assert (ROOT / comfy[picture].partition("/main/")[2]).is_file()
    addresses = [*project["project"]["urls"].values(), comfy["Icon"], comfy["Banner"]]
    assert all("/OWNER/safety-directions" in address or "arxiv.org" in address for address in addresses)


def test_the_archive_holds_what_runs_and_is_small(archive):
    with zipfile.ZipFile(archive) as content:
        names = set(content.namelist())
    assert archive.stat().st_size < 20e6
    assert {name.partition("/")[0] for name in names if "/" in name} <= {
        "directions",
        "nodes",
        "web",
        "example_workflows",
        "locales",
        "subgraphs",
    }
    wanted = {
        name
        for name in files_of_the_repository()
        if name.startswith(("directions/", "nodes/", "web/", "example_workflows/", "locales/", "subgraphs/"))
    }
    assert wanted <= names and {"__init__.py", "pyproject.toml", "LICENSE", "README.md"} <= names


def test_the_registry_accepts_the_metadata(repository):
    told = run(
        sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "validate", cwd=repository
    )
    assert "passed successfully" in told and "Warning" not in told


def test_the_changelog_knows_the_version(project):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+?)\]", changelog, re.M)[0] in ("Unreleased", project["project"]["version"])


def workflow(name):
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def test_the_workflow_runs_make_test_on_every_system_and_python(project):
    job = workflow("test.yml")["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert (
        matrix["python"][0] == project["project"]["requires-python"].removeprefix(">=")
        and matrix["python"][-1] == "3.13"
    )
    assert any(step.get("run", "").startswith("make test") for step in job["steps"])
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_nothing_is_published_before_the_tests_pass():
    jobs = workflow("publish.yml")["jobs"]
    assert jobs["publish"]["needs"] == "test" and jobs["test"]["uses"] == "./.github/workflows/test.yml"


WINDOWS_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}


def test_every_file_has_a_name_that_windows_takes():
    files = files_of_the_repository()
    for name in files:
        for part in PurePosixPath(name).parts:
            assert not re.search(r'[<>:"|?*\\\x00-\x1f]', part) and part[-1] not in ". ", name
            assert part.partition(".")[0].upper() not in WINDOWS_DEVICES, name
    assert len({name.lower() for name in files}) == len(files), "two names differ in case alone"


def test_paths_leave_room_for_a_deep_portable_install():
    user, portable = (
        "C:/Users/A Rather Long User Name/Documents",
        "ComfyUI_windows_portable_nvidia/ComfyUI_windows_portable",
    )
    deep = f"{user}/{portable}/ComfyUI/custom_nodes/safety-directions/"
    assert max(len(deep) + len(name) for name in files_of_the_repository()) < 260


def test_the_citation_is_of_this_version(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["project"]["version"], "Apache-2.0")
    assert project["project"]["urls"]["Paper"] == citation["references"][0]["url"]


def test_every_link_between_the_documents_leads_somewhere():
    documents = [
        ROOT / name for name in files_of_the_repository() if name.endswith(".md") and not name.startswith("web/")
    ]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_file_that_the_documents_name_is_there():
    files = set(files_of_the_repository())
    known = files | {str(folder) for name in files for folder in PurePosixPath(name).parents}
    modules = {PurePosixPath(name).name for name in files}
    rooms = "|".join(sorted({name.split("/")[0] for name in files if "/" in name and not name.startswith(".")}))
    for document in (name for name in files if name.endswith(".md")):
        text = (ROOT / document).read_text(encoding="utf-8")
        for named in re.findall(rf"(?<![\w/.<~-])(?:{rooms})/[\w./*<>-]+", text):
            assert re.search("[*<]", named) or named.rstrip("./") in known, f"{document} names {named}"
        if document == "CONTRIBUTING.md":
            assert set(re.findall(r"\b\w+\.py\b", text)) <= modules
