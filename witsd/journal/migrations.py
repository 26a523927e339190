"""The schema as numbered steps. A step that has been released is never edited: a change is a new one."""

from __future__ import annotations

import apsw

#: Marks the file as ours, so that a stray SQLite file is refused and not migrated.
APPLICATION_ID = 0x57495453  # "WITS"

_STEP_1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- One row: where the journal stands. trimmed_pos is the newest position that retention has deleted.
CREATE TABLE journal(
    one INTEGER PRIMARY KEY CHECK (one = 1), last_pos INTEGER NOT NULL, trimmed_pos INTEGER NOT NULL,
    events INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO journal VALUES (1, 0, 0, 0, 0);

-- first_seq: the oldest seq still kept. sealed_us: set when nothing will be appended any more.
CREATE TABLE streams(
    stream_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL,
    first_seq INTEGER NOT NULL DEFAULT 1, sealed_us INTEGER, compacted INTEGER NOT NULL DEFAULT 0);
CREATE INDEX streams_to_compact ON streams(sealed_us) WHERE sealed_us IS NOT NULL AND compacted = 0;

-- first_seq here: set where this event stands for a compacted range that ends with it.
CREATE TABLE events(
    pos INTEGER PRIMARY KEY, stream_id INTEGER NOT NULL, seq INTEGER NOT NULL, first_seq INTEGER,
    time_us INTEGER NOT NULL, type TEXT NOT NULL, data BLOB NOT NULL);
CREATE UNIQUE INDEX events_by_stream ON events(stream_id, seq);

-- The first answer to a creating call, by the caller's key.
CREATE TABLE idempotency(
    actor TEXT NOT NULL, method TEXT NOT NULL, key TEXT NOT NULL, params_hash BLOB NOT NULL,
    result BLOB NOT NULL, created_us INTEGER NOT NULL, PRIMARY KEY (actor, method, key)) WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency(created_us);

-- pid, start_time (clock ticks since boot) and boot_id together name one process and no other.
CREATE TABLE agents(
    name TEXT PRIMARY KEY, spec BLOB NOT NULL, state TEXT NOT NULL, health TEXT NOT NULL,
    reason TEXT NOT NULL, since_us INTEGER NOT NULL, restarts INTEGER NOT NULL,
    pid INTEGER, start_time INTEGER, boot_id TEXT, history BLOB NOT NULL DEFAULT '[]') WITHOUT ROWID;

CREATE TABLE runs(
    n INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, agent TEXT NOT NULL, session_id TEXT,
    status TEXT NOT NULL, input BLOB NOT NULL, output BLOB, error BLOB,
    reason TEXT, usage BLOB NOT NULL, stream INTEGER NOT NULL, timeout_s REAL, actor TEXT NOT NULL,
    created_us INTEGER NOT NULL, started_us INTEGER, ended_us INTEGER);
CREATE INDEX runs_by_agent ON runs(agent, n);
CREATE INDEX runs_by_session ON runs(session_id, n) WHERE session_id IS NOT NULL;
CREATE INDEX runs_by_status ON runs(status, n);

CREATE TABLE items(
    run_id TEXT NOT NULL, n INTEGER NOT NULL, item_id TEXT NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (run_id, item_id)) WITHOUT ROWID;

CREATE TABLE sessions(
    n INTEGER PRIMARY KEY, session_id TEXT NOT NULL UNIQUE, agent TEXT NOT NULL, title TEXT NOT NULL,
    settings BLOB NOT NULL, status TEXT NOT NULL, run_id TEXT, parent_id TEXT, origin TEXT NOT NULL,
    messages INTEGER NOT NULL,
    last_n INTEGER NOT NULL, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL);
CREATE INDEX sessions_by_update ON sessions(updated_us, n);

CREATE TABLE messages(
    id INTEGER PRIMARY KEY, message_id TEXT NOT NULL UNIQUE, session_id TEXT NOT NULL, n INTEGER NOT NULL,
    role TEXT NOT NULL, author TEXT NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL, run_id TEXT,
    model TEXT, attachments BLOB, created_us INTEGER NOT NULL, UNIQUE (session_id, n));
CREATE VIRTUAL TABLE messages_fts USING fts5(
    text, content='messages', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2');
CREATE TRIGGER messages_added AFTER INSERT ON messages BEGIN
    INSERT INTO messages_fts(rowid, text) VALUES (new.id, new.text); END;
CREATE TRIGGER messages_deleted AFTER DELETE ON messages BEGIN
    INSERT INTO messages_fts(messages_fts, rowid, text) VALUES ('delete', old.id, old.text); END;
CREATE TRIGGER messages_changed AFTER UPDATE OF text ON messages BEGIN
    INSERT INTO messages_fts(messages_fts, rowid, text) VALUES ('delete', old.id, old.text);
    INSERT INTO messages_fts(rowid, text) VALUES (new.id, new.text); END;

CREATE TABLE tokens(
    token_id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, scopes TEXT NOT NULL,
    created_us INTEGER NOT NULL, expires_us INTEGER, last_used_us INTEGER) WITHOUT ROWID;
CREATE TABLE browser_sessions(
    session_hash BLOB PRIMARY KEY, tab_hash BLOB NOT NULL, created_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL) WITHOUT ROWID;
"""

_STEP_2 = """
-- Made by the first record that goes into it; records and bytes count what is found (no chunks, no duplicates).
CREATE TABLE memory_namespaces(
    namespace_id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
    records INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, created_us INTEGER NOT NULL);

-- A record, or a chunk of one (part_of set, memory_id NULL): what is too long to be found as a whole is found by
-- its chunks. duplicate_of: the record that stands for this one, which is not indexed itself. embedded: the newest
-- generation that has its vector. hash: of namespace, kind, speaker and text made alike.
CREATE TABLE memories(
    id INTEGER PRIMARY KEY, memory_id TEXT UNIQUE, namespace_id INTEGER NOT NULL, kind TEXT NOT NULL,
    text TEXT NOT NULL, metadata TEXT, speaker TEXT NOT NULL, session_id TEXT, message_id TEXT, run_id TEXT,
    author TEXT NOT NULL, source TEXT, trust INTEGER NOT NULL, hash BLOB, time_us INTEGER NOT NULL,
    created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, valid_from_us INTEGER, valid_to_us INTEGER,
    superseded_by INTEGER, expires_us INTEGER, duplicate_of INTEGER, duplicates INTEGER NOT NULL DEFAULT 0,
    near_of INTEGER, uses INTEGER NOT NULL DEFAULT 0, used_us INTEGER, version INTEGER NOT NULL DEFAULT 1,
    part_of INTEGER, place INTEGER, starts INTEGER, heading TEXT, indexed INTEGER NOT NULL DEFAULT 1,
    embedded INTEGER NOT NULL DEFAULT 0);
CREATE INDEX memories_by_namespace ON memories(namespace_id, id);
CREATE INDEX memories_by_session ON memories(session_id, namespace_id, id) WHERE session_id IS NOT NULL;
CREATE INDEX memories_by_whole ON memories(part_of, place) WHERE part_of IS NOT NULL;
CREATE INDEX memories_by_run ON memories(run_id) WHERE run_id IS NOT NULL;
CREATE INDEX memories_by_message ON memories(message_id) WHERE message_id IS NOT NULL;
CREATE INDEX memories_by_hash ON memories(hash) WHERE hash IS NOT NULL;
CREATE INDEX memories_by_duplicate ON memories(duplicate_of) WHERE duplicate_of IS NOT NULL;
CREATE INDEX memories_by_successor ON memories(superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX memories_by_near ON memories(near_of) WHERE near_of IS NOT NULL;
CREATE INDEX memories_by_expiry ON memories(expires_us) WHERE expires_us IS NOT NULL;
CREATE INDEX memories_to_embed ON memories(embedded, id) WHERE indexed = 1;

-- ns: the namespace as a word, to be ANDed to a query; around: the words of the neighbours.
CREATE VIRTUAL TABLE memory_fts USING fts5(ns, own, around, tokenize='porter unicode61 remove_diacritics 2');

-- What a record was before each change.
CREATE TABLE memory_history(
    id INTEGER PRIMARY KEY, memory INTEGER NOT NULL, version INTEGER NOT NULL, change TEXT NOT NULL,
    actor TEXT NOT NULL, run_id TEXT, before BLOB NOT NULL, time_us INTEGER NOT NULL);
CREATE INDEX memory_history_by_memory ON memory_history(memory, id);
CREATE INDEX memory_history_by_run ON memory_history(run_id) WHERE run_id IS NOT NULL;

-- derived was made from source: what becomes of the one becomes of the other.
CREATE TABLE memory_links(
    source INTEGER NOT NULL, derived INTEGER NOT NULL, PRIMARY KEY (source, derived)) WITHOUT ROWID;
CREATE INDEX memory_links_back ON memory_links(derived);

-- What was imported: part by part, under the name of what it comes from. hash: of what was written then, so that the
-- same is known again and another text takes its place.
CREATE TABLE memory_imports(
    namespace_id INTEGER NOT NULL, key TEXT NOT NULL, part INTEGER NOT NULL, hash BLOB NOT NULL,
    memory INTEGER NOT NULL, PRIMARY KEY (namespace_id, key, part)) WITHOUT ROWID;
CREATE INDEX memory_imports_by_memory ON memory_imports(memory);

-- Backups that were made: what is deleted here is still in them.
CREATE TABLE backups(path TEXT PRIMARY KEY, bytes INTEGER NOT NULL, made_us INTEGER NOT NULL) WITHOUT ROWID;

-- One embedding model with one digest (embedder is the name that finds it again); its vectors are in
-- memory_vectors_<generation>, made when it begins.
-- state: current (searched), building (being filled, to take over), retired.
CREATE TABLE memory_generations(
    generation INTEGER PRIMARY KEY, embedder TEXT NOT NULL, model TEXT NOT NULL, digest TEXT NOT NULL,
    dimensions INTEGER NOT NULL, state TEXT NOT NULL, created_us INTEGER NOT NULL);

-- Texts that are always in an agent's prompt. Each change is a row; the highest version is the one that holds.
CREATE TABLE blocks(
    agent TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, text TEXT NOT NULL, author TEXT NOT NULL,
    run_id TEXT, time_us INTEGER NOT NULL, PRIMARY KEY (agent, name, version)) WITHOUT ROWID;
"""

_STEP_3 = """
-- What an agent offered when it was last started, as it said it, so that a call can start it.
CREATE TABLE agent_tools(agent TEXT PRIMARY KEY, tools BLOB NOT NULL) WITHOUT ROWID;
"""

_STEP_4 = """
-- parent: the run that delegated it. budget: its own limits; spent: with all that it delegated.
ALTER TABLE runs ADD COLUMN parent TEXT;
ALTER TABLE runs ADD COLUMN budget BLOB;
ALTER TABLE runs ADD COLUMN spent BLOB;

-- What an agent has spent on models since since_us, as its budget counts.
CREATE TABLE spending(agent TEXT PRIMARY KEY, since_us INTEGER NOT NULL, spent BLOB NOT NULL) WITHOUT ROWID;
"""

_STEP_5 = """
-- What a person is asked before a tool acts. hash: of tool, arguments, working folder and caller.
CREATE TABLE approvals(
    n INTEGER PRIMARY KEY, approval_id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, tool TEXT NOT NULL,
    arguments BLOB NOT NULL, actor TEXT NOT NULL, agent TEXT NOT NULL, hash BLOB NOT NULL, cwd TEXT, run_id TEXT,
    session_id TEXT, executed TEXT NOT NULL, created_us INTEGER NOT NULL, expires_us INTEGER NOT NULL,
    resolved_us INTEGER, resolved_by TEXT);
CREATE INDEX approvals_by_status ON approvals(status, n);

-- Answers that hold for calls to come.
CREATE TABLE tool_rules(
    rule_id TEXT PRIMARY KEY, agent TEXT NOT NULL, tool TEXT NOT NULL, policy TEXT NOT NULL, patterns BLOB NOT NULL,
    arguments BLOB, author TEXT NOT NULL, created_us INTEGER NOT NULL) WITHOUT ROWID;

-- Calls of tools that act. state: waiting (for an approval), running, done, interrupted (nobody knows how far it came).
CREATE TABLE tool_calls(
    call_id TEXT PRIMARY KEY, actor TEXT NOT NULL, key TEXT, hash BLOB NOT NULL, tool TEXT NOT NULL, run_id TEXT,
    approval_id TEXT, state TEXT NOT NULL, result BLOB, created_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE UNIQUE INDEX tool_calls_by_key ON tool_calls(actor, key) WHERE key IS NOT NULL;
CREATE INDEX tool_calls_by_approval ON tool_calls(approval_id) WHERE approval_id IS NOT NULL;
CREATE INDEX tool_calls_running ON tool_calls(state) WHERE state IN ('waiting', 'running');
CREATE INDEX tool_calls_by_age ON tool_calls(created_us);
"""

_STEP_6 = """
-- Files that runs have made; each is in a file called by its id.
CREATE TABLE artifacts(
    n INTEGER PRIMARY KEY, artifact_id TEXT NOT NULL UNIQUE, run_id TEXT NOT NULL, name TEXT NOT NULL,
    media_type TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, created_us INTEGER NOT NULL);
CREATE INDEX artifacts_by_run ON artifacts(run_id, name, n);
"""

_STEP_7 = """
-- Tools made at run time.
CREATE TABLE defined_tools(name TEXT PRIMARY KEY, author TEXT NOT NULL, definition BLOB NOT NULL) WITHOUT ROWID;
"""

#: Step n (counting from 1) brings ``user_version`` from n - 1 to n.
STEPS: tuple[str, ...] = (_STEP_1, _STEP_2, _STEP_3, _STEP_4, _STEP_5, _STEP_6, _STEP_7)


class SchemaError(Exception):
    """The file cannot be used as it is; the message says why and what to do."""


def check_ours(db: apsw.Connection, path: str, steps: tuple[str, ...] = STEPS) -> int:
    """The schema version of ``db``, 0 for a new file. Only reads.

    Raises ``SchemaError`` for a file that is no witsd database or comes from a newer version.
    """
    try:
        version = int(db.pragma("user_version"))
        application = int(db.pragma("application_id"))
        tables = db.execute("SELECT count(*) FROM sqlite_schema").get
    except apsw.NotADBError as error:
        raise SchemaError(f"{path} is not a database: move it away and start again") from error
    if application != APPLICATION_ID and (version or tables):
        raise SchemaError(f"{path} is a database of another program: move it away and start again")
    if version > len(steps):
        raise SchemaError(
            f"{path} was written by a newer witsd (schema {version}, this one knows {len(steps)}): "
            "install that version again, or restore a backup made before the upgrade"
        )
    return version


def migrate(db: apsw.Connection, path: str, steps: tuple[str, ...] = STEPS) -> None:
    """Bring ``db`` to the newest schema, each step in a transaction of its own.

    Raises ``SchemaError`` as ``check_ours`` does; such a file is left exactly as it was.
    """
    version = check_ours(db, path, steps)
    for number, sql in enumerate(steps[version:], version + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(sql)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
