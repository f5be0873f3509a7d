-- What operators see and do. The tables and columns are those of ../postgres/0008_operate.sql.

ALTER TABLE operator_action ADD COLUMN actor TEXT; -- who: user@host on the command line, the credential in the API
ALTER TABLE operator_action ADD COLUMN outcome TEXT; -- what came of it, in a few words
CREATE INDEX operator_action_by_target ON operator_action (target, id);

-- What is paused. A row that is there and not over is a pause.
CREATE TABLE control (
    scope TEXT NOT NULL, -- ingest or reconcile
    teacher_id TEXT NOT NULL, -- whose calendar; an empty text stands for all of them
    since_ms INTEGER NOT NULL, -- since when
    until_ms INTEGER, -- when it ends by itself; empty: when somebody resumes
    actor TEXT NOT NULL, -- who paused it
    reason TEXT NOT NULL, -- why
    PRIMARY KEY (scope, teacher_id)
) STRICT, WITHOUT ROWID;

-- Processes that serve, as they last said of themselves.
CREATE TABLE process (
    id TEXT NOT NULL PRIMARY KEY, -- drawn at its start
    host TEXT NOT NULL, -- the machine
    pid INTEGER NOT NULL, -- its number there
    version TEXT NOT NULL, -- release of the program
    started_at_ms INTEGER NOT NULL, -- when it started
    seen_at_ms INTEGER NOT NULL, -- when it last wrote this row
    state TEXT NOT NULL -- JSON: what only the process knows (NATS, ingest, breakers)
) STRICT;

-- What was asked of Google for a session, the last calls of each.
CREATE TABLE google_call (
    session_id TEXT NOT NULL, -- the session
    number INTEGER NOT NULL, -- counts the calls of the session, from 1
    ordinal INTEGER NOT NULL, -- which of its events
    teacher_id TEXT NOT NULL, -- on whose calendar
    operation TEXT NOT NULL, -- insert, patch, delete, … or look
    begun_at_ms INTEGER, -- when a write was begun
    at_ms INTEGER NOT NULL, -- when its outcome was recorded
    outcome TEXT NOT NULL, -- done, failed, unclear or seen
    phase TEXT NOT NULL, -- what was known of the event afterwards
    code TEXT, -- why not, as in the status document
    message TEXT, -- the same for a person
    PRIMARY KEY (session_id, number)
) STRICT, WITHOUT ROWID;

-- Answers that are given again when a request comes twice.
CREATE TABLE idempotency_key (
    credential TEXT NOT NULL, -- who asked
    key TEXT NOT NULL, -- the header Idempotency-Key
    request_hash TEXT NOT NULL, -- hash of the request it was used for first
    status INTEGER NOT NULL, -- HTTP status of the answer
    body TEXT NOT NULL, -- the answer
    created_at_ms INTEGER NOT NULL, -- when it was first given
    PRIMARY KEY (credential, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_key_by_age ON idempotency_key (credential, created_at_ms);
