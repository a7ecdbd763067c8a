"""The page as Airflow serves it: access control, the requests that it makes, and its content security policy."""

from __future__ import annotations

import html
import json
import re
import time
from pathlib import Path

import pytest

from demo import stack
from physionet_airflow.compat import AIRFLOW
from physionet_mirror.layout import MANIFEST, RunLayout
from tests.page_server import (
    A_SHARD,
    BOMB,
    BUCKET,
    DAMAGED,
    DONE,
    ELSEWHERE,
    LIVE,
    NO_INDEX,
    PREFIX,
    PROJECT,
    SHARDS,
    TABLES,
    TABLES_RUN,
    page_server,
    result_of,
)

HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with page_server(tmp_path_factory.mktemp("page")) as server:
        yield server


@pytest.fixture(scope="module")
def viewer(server):
    return server.as_user("viewer")


def every_route(server):
    base = f"{server.url}/physionet"
    for path in ("/", "/plan", "/plan/project", "/dags/mimic_cxr_jpg", "/static/page.css"):
        yield base + path
    for view in ("", "progress.json", "failures", "report", "report.html", "failed_images.txt", "s3", "dataset"):
        yield server.run_url(DONE, view)


def ask(server, session, headers=None, view="/plan/result", **form):
    """Send the plan's form, as the page does."""
    return session.post(f"{server.url}/physionet{view}", data=form, headers=HTML | (headers or {}))


# -- access ------------------------------------------------------------------------------------------------------------


def test_nobody_sees_anything_without_a_login(server):
    anonymous = server.as_user(None)
    for url in every_route(server):
        answer = anonymous.get(url, headers=HTML, allow_redirects=False)
        assert answer.status_code == 401, url
        assert BUCKET not in answer.text


def test_a_forged_login_is_none(server):
    session = server.as_user(None)
    session.cookies.set("_token", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiIsInJvbGUiOiJhZG1pbiJ9.")
    assert {session.get(url).status_code for url in every_route(server)} <= {401, 403}


def test_who_may_not_read_the_dag_is_refused(server):
    stranger = server.as_user("stranger")
    for url in every_route(server):
        if "/static/" not in url:
            answer = stranger.get(url, headers=HTML, allow_redirects=False)
            assert answer.status_code == 403, url
            assert BUCKET not in answer.text


def test_a_viewer_sees_every_view(server, viewer):
    for url in every_route(server):
        assert viewer.get(url, headers=HTML, allow_redirects=False).status_code in (200, 307), url


def test_a_run_of_no_dag_of_ours_and_no_run_are_not_found(server, viewer):
    assert viewer.get(server.run_url(dag_id="other")).status_code in (403, 404)
    assert viewer.get(server.run_url("nothing")).status_code == 404


# -- what may be read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted", ["s3://secret-bucket/x", f"s3://{BUCKET}/mimic", "../..", f"s3://{BUCKET}/{PREFIX}/../other", "x" * 500]
)
def test_an_address_cannot_name_a_bucket(server, viewer, wanted):
    answer = viewer.get(f"{server.url}/physionet/", params={"mirror": wanted}, headers=HTML)
    assert answer.status_code == 200
    assert f'value="{wanted}"' not in answer.text
    assert f"s3://{BUCKET}/{PREFIX}" in answer.text


def test_a_plan_for_a_bucket_that_no_run_went_to_does_not_read_it(server, viewer):
    answer = ask(server, viewer, bucket="secret-bucket", sample_size="25")
    assert answer.status_code == 200
    assert f"Counted from the manifest in <code>s3://{BUCKET}/{PREFIX}</code>" in answer.text
    assert "25 images" in answer.text


@pytest.mark.parametrize(
    "view", ["plan.json", "../../secret.txt", "..%2f..%2fsecret.txt", "report.json", "shards/0000"]
)
def test_only_report_and_failed_list_of_a_run_can_be_fetched(server, viewer, view):
    answer = viewer.get(f"{server.run_url(DONE)}/{view}")
    assert answer.status_code == 404
    assert "not for the page" not in answer.text


@pytest.mark.parametrize("run_id", ["a/b", "a%00b", "x" * 300, "%7B%7B7*7%7D%7D"])
def test_strange_run_ids_lead_nowhere(server, viewer, run_id):
    answer = viewer.get(f"{server.url}/physionet/dags/mimic_cxr_jpg/runs/{run_id}", headers=HTML)
    assert answer.status_code in (404, 422)
    assert "49" not in re.sub(r"\?v=\w+", "", answer.text)  # the digest of the static files may hold anything


def test_a_run_that_went_elsewhere_says_that_its_bucket_cannot_be_read(server, viewer):
    answer = viewer.get(server.run_url(ELSEWHERE, "report", "mimic_cxr_audit"), headers=HTML)
    assert answer.status_code in (200, 502)
    assert "other-bucket" in answer.text or "No report" in answer.text


def test_params_are_shown_as_text_whatever_they_hold(server, viewer):
    attack = "<script>alert(1)</script>"
    answer = viewer.get(f"{server.url}/physionet/plan", params={"file_list": attack, "bucket": attack}, headers=HTML)
    assert answer.status_code == 200
    assert attack not in answer.text


def test_no_secret_is_on_any_view(server, viewer):
    secrets = [server.s3.access_key, server.s3.secret_key, *(server.password(user) for user in ("admin", "viewer"))]
    for url in every_route(server):
        text = viewer.get(url, headers=HTML, allow_redirects=False).text
        assert not [secret for secret in secrets if secret in text], url
        assert "X-Amz-Signature" not in text


# -- policy ------------------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_policy(server, viewer):
    for url in every_route(server):
        answer = viewer.get(url, headers=HTML, allow_redirects=False)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe-eval" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_pages_need_nothing_inline_and_nothing_from_elsewhere(server, viewer):
    for url in every_route(server):
        answer = viewer.get(url, headers=HTML, allow_redirects=False)
        if not answer.headers.get("Content-Type", "").startswith("text/html") or url.endswith("report.html"):
            continue
        page = answer.text
        assert not re.search(r"\sstyle=|\son\w+=|javascript:", page), url
        assert not re.search(r"<script(?![^>]*(\ssrc=|application/json))", page), url
        assert not re.search(r"(?:src|href|action)=\"(?:https?:)?//(?!physionet\.org)", page), url


def test_a_report_may_run_nothing_and_show_no_picture(server, viewer):
    policy = viewer.get(server.run_url(DONE, "report.html")).headers["Content-Security-Policy"]
    assert "sandbox" in policy
    assert "allow-scripts" not in policy
    frame = re.search(r"<iframe[^>]*>", viewer.get(server.run_url(DONE, "report"), headers=HTML).text)[0]
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in frame
    assert "script-src" not in policy
    assert "img-src" not in policy
    assert "default-src 'none'" in policy


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_the_live_numbers_add_up(server, viewer):
    now = viewer.get(server.run_url(LIVE, "progress.json")).json()
    results = [result for number in range(SHARDS) if (result := result_of(number))]
    assert now["images"] == SHARDS * A_SHARD
    assert now["there"] == 90 * A_SHARD + sum(result["stored"] for result in results)
    assert now["states"] == {"there": 90, "done": 154, "running": 4, "retrying": 1, "failed": 2, "waiting": 149}
    assert len(now["shards"]) == SHARDS
    assert now["failures"] == sum(len(result["failed"]) for result in results)
    assert not now["over"]


def test_an_unchanged_run_is_answered_in_a_word(server, viewer):
    first = viewer.get(server.run_url(DONE, "progress.json"))
    again = viewer.get(server.run_url(DONE, "progress.json"), headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_ten_readers_cost_as_much_as_one(server, viewer):
    viewer.get(server.run_url(LIVE, "progress.json"))
    began = time.monotonic()
    for _ in range(10):
        assert viewer.get(server.run_url(LIVE, "progress.json")).ok
    assert time.monotonic() - began < 8
    assert len(viewer.get(server.run_url(LIVE, "progress.json")).content) < 60_000


def test_a_plan_says_what_it_takes_and_keeps_its_params_for_the_trigger(server, viewer):
    params = {"form": "1", "bucket": BUCKET, "prefix": PREFIX, "select": "sample", "sample_size": "25"}
    params |= {"sample_by": "image", "seed": "42", "connections": "8", "storage_class": "STANDARD"}
    params |= {"verify": "checksum", "source": "physionet", "approve_above_gb": "50", "labels": ["Edema", "Fracture"]}
    answer = ask(server, viewer, **params)
    assert '<dd id="r-images">25<' in answer.text
    assert "reading it all back" not in answer.text
    assert "&#34;labels&#34;: [&#34;Edema&#34;" in answer.text or '"labels": ["Edema", "Fracture"]' in answer.text


def test_a_plan_says_a_range_what_it_rests_on_and_what_reading_back_takes(server, viewer):
    params = {"form": "1", "bucket": BUCKET, "prefix": PREFIX, "select": "all", "verify": "content"}
    page = ask(server, viewer, **params).text
    assert re.search(
        r"<dt>Time</dt><dd>about \d+ min to [\d.]+ h<small>8 connections, 0.044 to 0.65 MB/s a connection", page
    )
    assert re.search(
        r"reading it all back: about \d+ min at 100 MB/s, &lt; \$0\.01, and \$\d+\.\d\d for a worker outside AWS", page
    )


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"sample_size": "0"}, "sample_size"),
        ({"sample_size": "many"}, "sample_size"),
        ({"connections": "99"}, "connections"),
        ({"bucket": "Not_A_Bucket"}, "bucket"),
        ({"prefix": "a/../b"}, "prefix"),
        ({"subjects": "10000032\nbogus"}, "subjects"),
        ({"views": ["PA"], "subjects": "19999998"}, "subjects"),
        ({"linked": ["icu"]}, "linked"),  # nobody has made the table there
        ({"has_report": "1"}, "has_report"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(server, viewer, params, field):
    answer = viewer.get(f"{server.url}/physionet/plan", params=params, headers=HTML)
    assert answer.status_code == 200
    assert re.search(rf'data-error="{field}" data-text="[^"]+', answer.text), answer.text[-3000:]


@pytest.mark.parametrize("view", ["/plan", "/plan/result", "/plan/project", "/plan/project/result"])
def test_a_form_is_for_those_who_may_read_the_dag(server, view):
    assert ask(server, server.as_user(None), view=view, bucket=BUCKET).status_code == 401
    assert ask(server, server.as_user("stranger"), view=view, bucket=BUCKET).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://other.example"}, 403),
        ({"Origin": "http://other.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "same"}, 200),
        ({}, 200),
    ],
)
def test_a_form_that_another_sites_page_sends_is_refused(server, viewer, headers, status):
    if headers.get("Origin") == "same":
        headers = {"Origin": server.url}
    assert ask(server, viewer, headers, bucket=BUCKET, sample_size="25").status_code == status


def test_the_ids_of_thousands_of_patients_are_all_counted(server, viewer):
    import pyarrow.parquet as pq

    known = pq.read_table(server.s3.folder / BUCKET / PREFIX / MANIFEST, columns=["subject_id"])["subject_id"]
    ids = "\n".join(map(str, known.unique().to_pylist()[:5000]))
    answer = ask(
        server,
        viewer,
        form="1",
        bucket=BUCKET,
        prefix=PREFIX,
        select="all",
        subjects=ids,
        connections="8",
        seed="42",
        sample_size="9",
    )
    assert answer.status_code == 200
    conf = json.loads(html.unescape(re.search(r'id="conf-data">(.*?)</script>', answer.text, re.DOTALL)[1]))
    assert len(conf["subjects"]) == 5000


def test_a_form_beyond_the_limit_is_refused_with_the_limit(server, viewer):
    answer = ask(server, viewer, bucket=BUCKET, subjects="10000032\n" * 120_000)
    assert answer.status_code == 200
    assert "at most 1,000,000 are taken" in answer.text
    answer = ask(server, viewer, bucket=BUCKET, subjects="1" * 2_000_001)
    assert answer.status_code == 413
    assert "2,000,000 bytes" in answer.text


def test_a_misspelt_name_in_the_address_is_refused(server, viewer):
    answer = viewer.get(f"{server.url}/physionet/plan", params={"sampel_size": "5"}, headers=HTML)
    assert "sample_size" in html.unescape(answer.text.partition("Not right yet")[2])


def test_tabs_do_not_stand_on_other_peoples_dags(server):
    plugins = server.as_user("admin").get(f"{server.url}/api/v2/plugins").json()["plugins"]
    views = next(plugin for plugin in plugins if plugin["name"] == "physionet")["external_views"]
    assert [view["destination"] for view in views] == ["nav"]


# -- files that are not ours -------------------------------------------------------------------------------------------


@pytest.fixture
def spoil(server):
    """Replace one of our files during a test."""
    client = server.s3.session().client("s3", endpoint_url=server.s3.endpoint)
    before = {}

    def put(path, content):
        file = server.s3.folder / BUCKET / PREFIX / path
        before.setdefault(path, file.read_bytes() if file.exists() else None)
        client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}", Body=content)

    yield put
    for path, content in before.items():
        if content is None:
            client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}")
        else:
            client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{path}", Body=content)


def most_memory(server):
    """Peak memory of the API server in MB, without children that have ended."""
    import psutil

    process = psutil.Process(server.service._leash.pid)
    status = [Path(f"/proc/{p.pid}/status").read_text() for p in process.children(recursive=True)]
    return max(int(re.search(r"VmHWM:\s+(\d+)", text)[1]) for text in status) / 1024


@pytest.mark.parametrize("prefix", [BOMB, DAMAGED])
def test_a_manifest_of_somebody_else_is_said_to_be_unreadable_and_hides_nothing(server, viewer, prefix):
    viewer.get(f"{server.url}/physionet/", headers=HTML)
    before = most_memory(server)
    text = overview_of(server, viewer, prefix)
    assert "The bucket cannot be read now" in text
    assert text.count("builds the manifest again") >= 2  # in the list, and above what is shown of it
    assert "other-bucket" in text
    assert f"of-{prefix}" in text  # its last run is shown
    assert most_memory(server) - before < 100
    assert ask(server, viewer, bucket=BUCKET, prefix=prefix, sample_size="25").status_code == 200


def test_a_damaged_index_is_told_and_counts_as_unknown(server, viewer):
    text = overview_of(server, viewer, NO_INDEX)
    assert "What is verified is not known now" in text
    assert "0 % of the dataset" not in text


def test_a_project_without_radiographs_has_its_overview_and_hides_no_plan(server, viewer):
    text = overview_of(server, viewer, PROJECT)
    assert f"s3://{BUCKET}/{PROJECT}" in text
    assert "0 % of the dataset is in the bucket and verified" in text
    assert "of 30" in text
    answer = ask(server, viewer, bucket=BUCKET, prefix=PROJECT, sample_size="25")
    assert answer.status_code == 200
    assert "25 images" in answer.text


def test_the_overview_lists_training_sets_with_their_age_against_the_mirror(server, viewer):
    page = overview_of(server, viewer, PREFIX)
    section = page.partition('<h2 id="sets">')[2].partition("</section>")[0]
    rows = [
        re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)).strip()
        for row in section.partition("<tbody>")[2].split("</tr>")[:-1]
    ]
    assert rows[0] == "512 4,535 1 left out 340 MB 2 4,400 train, 135 test 5 hours ago 3 images newer"
    # Of all that the mirror has gained, only what the set's own filters take counts.
    assert re.fullmatch(r"512-pa-test (\d+) 340 MB 2 \1 test 5 hours ago 1 image newer", rows[1])
    assert len(rows) == 2
    assert '<h2 id="sets">' not in overview_of(server, viewer, NO_INDEX)


def test_the_plan_says_what_a_training_set_of_the_images_takes(server, viewer):
    text = html.unescape(ask(server, viewer, bucket=BUCKET, select="all", labels="Edema", splits="test").text)
    section = text.partition('<h3 id="training-title">')[2].partition("</section>")[0]
    size, tars = re.search(r"At 512 pixels about ([0-9.]+) MB in (\d+) tar", section).groups()
    images = int(re.search(r'id="r-images">([\d,]+)<', text)[1].replace(",", ""))
    assert 0.06 < float(size) / images < 0.12
    assert tars == "1"
    conf = json.loads(re.search(r"<code>(\{.*?\})</code>", section)[1])
    assert conf == {"bucket": BUCKET, "prefix": PREFIX, "labels": ["Edema"], "splits": ["test"]}


def test_every_mirror_that_a_run_ever_went_to_is_listed_with_its_numbers(server, viewer):
    """Also the one before hundreds of nightly runs, and beside buckets that cannot be read."""
    for _ in range(10):  # what takes longer than some seconds is in the next answer
        page = html.unescape(viewer.get(f"{server.url}/physionet/", headers=HTML).text)
        if "Not counted yet" not in page:
            break
    table = page.partition('<table id="mirrors"')[2].partition("</table>")[0]
    rows = {
        re.search(r"<small>(\S+)</small>", row)[1]: re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row))
        for row in table.partition("<tbody>")[2].split("</tr>")[:-1]
    }
    here = f"s3://{BUCKET}/"
    assert set(rows) == {
        f"s3://other-bucket/{PREFIX}",
        *(here + prefix for prefix in (PREFIX, PROJECT, TABLES, BOMB, DAMAGED, NO_INDEX)),
    }
    assert "0 % 0 of 30 files 0 B never" in rows[here + PROJECT]
    assert re.search(r"37\.8 % 4,539 of 12,000 images 6\.56 GB (just now|\d+ \w+ ago)", rows[here + PREFIX])
    assert "manifest.parquet cannot be read" in rows[here + BOMB]
    assert "index.parquet cannot be read" in rows[here + NO_INDEX]


def test_the_list_is_of_what_its_reader_may_see_and_a_dags_overview_of_that_dag_alone(server, viewer):
    page = viewer.get(f"{server.url}/physionet/dags/physionet_project", headers=HTML).text
    assert f"{BUCKET}/{PROJECT}" in page
    assert "other-bucket" not in page


def of_files(server, viewer, **form):
    """The plan of any project, with its tags taken out."""
    answer = ask(server, viewer, view="/plan/project/result", **{"form": "1", "bucket": BUCKET, **form})
    assert answer.status_code == 200
    return answer.text, re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", answer.text)))


def test_a_projects_files_are_planned_with_the_sizes_of_an_earlier_plan(server, viewer):
    page, text = of_files(server, viewer, project=TABLES)
    assert "Files 41 of 41 of the project" in text
    assert "To fetch 5.32 GB 22 files are there already" in text  # 10.6 GB of the plan without the 5.28 GB verified
    assert "Sizes: the last plan of the same files: each file's size, as PhysioNet's website gives it." in text
    assert f"Counted from the manifest in s3://{BUCKET}/{TABLES}" in text
    assert re.search(r'data-label="hosp" data-part="22".*data-label="icu" data-part="17"', page, re.DOTALL)
    conf = json.loads(html.unescape(re.search(r'id="conf-data">(.*?)</script>', page, re.DOTALL)[1]))
    assert (conf["project"], conf["prefix"], conf["include"]) == (TABLES, None, [])


def test_globs_choose_files_line_by_line_and_one_that_matches_nothing_is_named(server, viewer):
    _, text = of_files(server, viewer, project=TABLES, include="icu/*.gz\n*.txt", exclude="icu/table-0?.csv.gz")
    assert "Files 9 of 41" in text
    assert "Sizes: the mean of the 41 files of an earlier plan." in text
    page, _ = of_files(server, viewer, project=TABLES, include="icu/*.{gz,zip}")
    assert re.search(r'data-error="include" data-text="no file of this project matches [^"]*icu/\*\.\{gz,zip\}', page)


def test_a_project_is_planned_for_another_bucket_from_the_manifest_that_is_there(server, viewer):
    _, text = of_files(server, viewer, project=TABLES, bucket="new-bucket")
    assert "To fetch 10.6 GB 41 files" in text
    assert f"Counted from the manifest in s3://{BUCKET}/{TABLES}" in text


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({}, "Name a project first"),
        ({"project": "a-new-one/1.0"}, "There is nothing to count from yet"),
        ({"project": PROJECT}, "Sizes: 1 MB a file, a guess"),
        ({"project": "mimiciv"}, 'data-error="project"'),
        ({"project": TABLES, "connections": "99"}, 'data-error="connections"'),
        ({"project": TABLES, "prefix": DAMAGED}, "manifest.parquet cannot be read"),
    ],
)
def test_a_plan_of_any_project_says_what_it_lacks(server, viewer, form, says):
    assert says in of_files(server, viewer, **form)[0]


def test_the_two_plans_lead_to_each_other_and_known_projects_are_offered(server, viewer):
    page = viewer.get(f"{server.url}/physionet/plan/project", headers=HTML).text
    assert 'href="/physionet/plan"' in page
    assert '<option value="mimic-iv-ecg/1.0">' in page
    assert "api/v2/dags/physionet_project" in page
    assert 'href="/physionet/plan/project"' in viewer.get(f"{server.url}/physionet/plan", headers=HTML).text


def test_a_projects_run_is_told_in_files_and_leads_to_its_own_page(server, viewer):
    run = {"run_id": TABLES_RUN, "dag_id": "physionet_project"}
    page = viewer.get(server.run_url(**run), headers=HTML).text
    assert "Failed files" in page
    assert not re.search(r"\bimages\b", re.sub(r"<[^>]+>", " ", page))
    assert f"{BUCKET}/{TABLES}/</code>" in viewer.get(server.run_url(view="s3", **run), headers=HTML).text
    answer = viewer.get(server.run_url(view="dataset", **run), allow_redirects=False)
    assert answer.headers["Location"] == f"https://physionet.org/content/{TABLES}/"


def overview_of(server, viewer, prefix):
    answer = viewer.get(f"{server.url}/physionet/", params={"mirror": f"s3://{BUCKET}/{prefix}"}, headers=HTML)
    assert answer.status_code == 200
    return html.unescape(answer.text)


def test_a_runs_files_of_somebody_else_are_left_out_with_the_reason(server, viewer, spoil):
    run = RunLayout(DONE)
    for path, content in {
        run.report_json: b'{"result": {"level": "x"}, "run": [], "transfer": 1e999}',
        run.result(0): b"[" * 200_000,
        run.result(1): b'{"shard": ' + b" " * (5 << 20) + b"1}",
        run.result(2): b'{"shard": "two", "series": [[1]], "failed": 7}',
    }.items():
        spoil(path, content)
    time.sleep(3)
    answer = viewer.get(server.run_url(DONE), headers=HTML)
    assert answer.status_code == 200
    assert "has more than 4 MB" in answer.text
    assert "is damaged and is left out" in answer.text
    assert viewer.get(server.run_url(DONE, "progress.json")).json()["fields"]["headline"] == "The run succeeded"


@pytest.mark.parametrize(
    "plan", [b'{"shards": 5}', b'{"shards": [{"index": 1e999}]}', b"[]", b'{"shards": [], "request": []}']
)
def test_a_plan_of_somebody_else_is_none(server, viewer, spoil, plan):
    spoil(RunLayout(DONE).plan, plan)
    time.sleep(3)
    answer = viewer.get(server.run_url(DONE), headers=HTML)
    assert answer.status_code == 200
    assert "Not all of this run" in answer.text


def test_a_report_that_is_too_long_is_not_shown(server, viewer, spoil):
    spoil(RunLayout(DONE).report_html, b"<p>" * (6 << 20))
    answer = viewer.get(server.run_url(DONE, "report.html"), headers=HTML)
    assert answer.status_code == 413
    assert "more than 16 MB" in answer.text


def test_links_on_tasks_lead_to_the_page(server, viewer):
    path = f"dags/mimic_cxr_jpg/dagRuns/{LIVE}/taskInstances/verify/links".replace("+", "%2B")
    links = viewer.get(f"{server.url}/api/v2/{path}").json()["extra_links"]
    assert set(links) >= {"Live progress", "Report", "Files in S3", "Dataset at PhysioNet"}
    for link in links.values():
        assert viewer.get(server.url + link, headers=HTML, allow_redirects=False).status_code in (200, 307)


def test_airflow_offers_the_connection_type_with_its_form(server):
    forms = server.as_user("admin").get(f"{server.url}/ui/connections/hook_meta").json()
    form = next(form for form in forms if form["connection_type"] == "physionet")
    assert form["hook_name"] == "PhysioNet"
    if AIRFLOW >= (3, 2):  # 3.1 does not read the form from the provider's description
        assert form["standard_fields"]["login"]["title"] == "PhysioNet user name"
        assert "user_agent" in form["extra_fields"]
    assert any(form["connection_type"] == "http" for form in forms)


@pytest.fixture(scope="module")
def physionet(tmp_path_factory):
    from tests.page_server import PREFIX

    root = tmp_path_factory.mktemp("physionet")
    for name in (PREFIX, "mimic-cxr/2.0.0"):
        (root / name).mkdir(parents=True)
        (root / name / "SHA256SUMS.txt").write_text("")
    with stack.physionet(root, options=["--agreement", PREFIX]) as source:
        yield source


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "PhysioNet lets demo-reader read mimic-cxr-jpg/2.1.0."),
        ({"password": "wrong"}, "Wrong user name or password."),
        ({"dataset": "mimic-cxr/2.0.0"}, "https://physionet.org/content/mimic-cxr/2.0.0/"),
        ({"dataset": "imagenet/1"}, "There is no dataset 'imagenet/1'"),
        ({"user_agent": "python-requests/2"}, "PhysioNet ignores the password of a client that calls itself"),
        ({"host": "http://127.0.0.1:9"}, "PhysioNet cannot be reached."),
        ({"host": "http://physionet.invalid"}, "A parameter, connection or setting cannot be used as it is."),
        ({"password": ""}, "has no password"),
    ],
)
def test_the_test_button_tells_what_is_wrong(server, physionet, change, says):
    extra = {name: value for name, value in change.items() if name in ("dataset", "user_agent")}
    connection = {
        "connection_id": "physionet_form",
        "conn_type": "physionet",
        "host": change.get("host", physionet.url),
        "login": physionet.user,
        "password": change.get("password", physionet.password),
        "extra": json.dumps(extra),
    }
    answer = server.as_user("admin").post(f"{server.url}/api/v2/connections/test", json=connection)
    assert answer.status_code == 200, answer.text
    assert says in answer.json()["message"]
    assert answer.json()["status"] is (not change)
    assert not change or physionet.password not in answer.text


def test_the_provider_has_the_projects_version():
    from importlib.metadata import version

    from physionet_mirror import __version__

    assert version("physionet-mirror") == __version__
