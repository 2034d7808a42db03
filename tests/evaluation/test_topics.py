from __future__ import annotations

import gzip

import pytest

from diffretriever.corpus import Query
from diffretriever.errors import CorpusError
from diffretriever.evaluation.topics import read_topics

OPEN_TAGS = """
<top>
<num> Number: 301
<title> International Organized
Crime
<desc> Description:
Identify organizations that participate.
<narr> Narrative:
A relevant document must name one.
</top>

<top>
<num> Number: 302
<title> Topic: Poliomyelitis & <i>Polio</i>
</top>
"""
CLOSED_TAGS = "<TOP><num>7</num><title>winter sports</title><desc>which ones?</desc></TOP>\n"


def test_sgml_with_and_without_closing_tags(tmp_path):
    (tmp_path / "topics.301").write_text(OPEN_TAGS)
    (tmp_path / "topics.xml").write_text(CLOSED_TAGS)
    expected = [Query("301", "International Organized Crime"), Query("302", "Poliomyelitis & <i>Polio</i>")]
    assert read_topics(tmp_path / "topics.301") == expected
    assert read_topics(tmp_path / "topics.xml") == [Query("7", "winter sports")]
    assert read_topics(tmp_path / "topics.xml", "desc") == [Query("7", "which ones?")]
    with gzip.open(tmp_path / "topics.gz", "wt") as file:
        file.write(OPEN_TAGS)
    assert read_topics(tmp_path / "topics.gz") == expected


def test_tab_separated_topics(tmp_path):
    (tmp_path / "topics.tsv").write_text("19335\tdefinition of environment\n47923\taxon terminals\n")
    assert [q.query_id for q in read_topics(tmp_path / "topics.tsv")] == ["19335", "47923"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<top>\n<num> 1\n<title> a\n", r":1: the topic that starts here has no </top>"),
        ("<top>\n<num> 1\n<title> a\n<top>\n", r":4: <top> inside the topic of line 1"),
        ("<num> 1\n", r":1: <num> outside of a topic"),
        ("<!-- -->\n</top>\n", r":2: </top> without a <top>"),
        ("<top>\n<num> 1\n<title> a\n<num> 2\n", r":4: a second <num>"),
        ("<top>\n<title> a\n</top>\n", r":1: the topic needs one number"),
        ("<top>\n<num> 1 2\n<title> a\n</top>\n", r":1: the topic needs one number in <num>, got '1 2'"),
        ("\n<top>\n<num> 1\n<title> \n</top>\n", r":2: topic 1 has no text in <title>"),
        ("<top><num>1<title>a</top>\n<top><num>1<title>b</top>\n", r":2: topic '1' was already given in line 1"),
        (b"<top>\n<num> 1\n<title> caf\xe9\n</top>\n", r":3: byte 0xe9"),
        ("<x>\n", "holds no topic"),
    ],
)
def test_bad_topics_name_the_line(tmp_path, content, message):
    path = tmp_path / "topics.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError, match=message):
        read_topics(path)


def test_a_bad_line_of_tab_separated_topics_is_named(tmp_path):
    (tmp_path / "topics.tsv").write_text("1\tgood\nno tab\n")
    with pytest.raises(CorpusError, match=r"topics\.tsv:2: b'no tab' is no id, tab, text"):
        read_topics(tmp_path / "topics.tsv")
