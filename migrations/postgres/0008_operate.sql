-- What operators see and do.

ALTER TABLE operator_action ADD COLUMN actor TEXT;
ALTER TABLE operator_action ADD COLUMN outcome TEXT;
COMMENT ON COLUMN operator_action.actor IS 'who: user@host on the command line, the credential in the API';
COMMENT ON COLUMN operator_action.outcome IS 'what came of it, in a few words';
CREATE INDEX operator_action_by_target ON operator_action (target, id);

-- What is paused. A row that is there and not over is a pause.
CREATE TABLE control (
    scope TEXT NOT NULL,
    teacher_id TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    until_ms BIGINT,
    actor TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (scope, teacher_id)
);
COMMENT ON TABLE control IS 'What is paused. A row that is there and not over is a pause.';
COMMENT ON COLUMN control.scope IS 'ingest or reconcile';
COMMENT ON COLUMN control.teacher_id IS 'whose calendar; an empty text stands for all of them';
COMMENT ON COLUMN control.since_ms IS 'since when';
COMMENT ON COLUMN control.until_ms IS 'when it ends by itself; empty: when somebody resumes';
COMMENT ON COLUMN control.actor IS 'who paused it';
COMMENT ON COLUMN control.reason IS 'why';

-- Processes that serve, as they last said of themselves.
CREATE TABLE process (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL,
    pid BIGINT NOT NULL,
    version TEXT NOT NULL,
    started_at_ms BIGINT NOT NULL,
    seen_at_ms BIGINT NOT NULL,
    state TEXT NOT NULL
);
COMMENT ON TABLE process IS 'Processes that serve, as they last said of themselves.';
COMMENT ON COLUMN process.id IS 'drawn at its start';
COMMENT ON COLUMN process.host IS 'the machine';
COMMENT ON COLUMN process.pid IS 'its number there';
COMMENT ON COLUMN process.version IS 'release of the program';
COMMENT ON COLUMN process.started_at_ms IS 'when it started';
COMMENT ON COLUMN process.seen_at_ms IS 'when it last wrote this row';
COMMENT ON COLUMN process.state IS 'JSON: what only the process knows (NATS, ingest, breakers)';

-- What was asked of Google for a session, the last calls of each.
CREATE TABLE google_call (
    session_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    ordinal BIGINT NOT NULL,
    teacher_id TEXT NOT NULL,
    operation TEXT NOT NULL,
    begun_at_ms BIGINT,
    at_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    phase TEXT NOT NULL,
    code TEXT,
    message TEXT,
    PRIMARY KEY (session_id, number)
);
COMMENT ON TABLE google_call IS 'What was asked of Google for a session, the last calls of each.';
COMMENT ON COLUMN google_call.session_id IS 'the session';
COMMENT ON COLUMN google_call.number IS 'counts the calls of the session, from 1';
COMMENT ON COLUMN google_call.ordinal IS 'which of its events';
COMMENT ON COLUMN google_call.teacher_id IS 'on whose calendar';
COMMENT ON COLUMN google_call.operation IS 'insert, patch, delete, … or look';
COMMENT ON COLUMN google_call.begun_at_ms IS 'when a write was begun';
COMMENT ON COLUMN google_call.at_ms IS 'when its outcome was recorded';
COMMENT ON COLUMN google_call.outcome IS 'done, failed, unclear or seen';
COMMENT ON COLUMN google_call.phase IS 'what was known of the event afterwards';
COMMENT ON COLUMN google_call.code IS 'why not, as in the status document';
COMMENT ON COLUMN google_call.message IS 'the same for a person';

-- Answers that are given again when a request comes twice.
CREATE TABLE idempotency_key (
    credential TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    status BIGINT NOT NULL,
    body TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (credential, key)
);
COMMENT ON TABLE idempotency_key IS 'Answers that are given again when a request comes twice.';
COMMENT ON COLUMN idempotency_key.credential IS 'who asked';
COMMENT ON COLUMN idempotency_key.key IS 'the header Idempotency-Key';
COMMENT ON COLUMN idempotency_key.request_hash IS 'hash of the request it was used for first';
COMMENT ON COLUMN idempotency_key.status IS 'HTTP status of the answer';
COMMENT ON COLUMN idempotency_key.body IS 'the answer';
COMMENT ON COLUMN idempotency_key.created_at_ms IS 'when it was first given';
CREATE INDEX idempotency_key_by_age ON idempotency_key (credential, created_at_ms);
