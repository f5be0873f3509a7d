-- Long work of operators (replay, rebuild, verify, the search for leftovers): where it stands, what it did, its proof.
CREATE TABLE run (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    arguments TEXT NOT NULL,
    cursor BIGINT NOT NULL,
    goal BIGINT NOT NULL,
    counts TEXT NOT NULL,
    reason TEXT,
    proof TEXT,
    started_at_ms BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    ended_at_ms BIGINT,
    holder TEXT,
    held_until_ms BIGINT NOT NULL
);
COMMENT ON TABLE run IS 'Long work of operators (replay, rebuild, verify, the search for leftovers): where it stands, what it did, its proof.';
COMMENT ON COLUMN run.id IS 'its name, as commands take it';
COMMENT ON COLUMN run.kind IS 'replay, rebuild, verify or leftovers';
COMMENT ON COLUMN run.state IS 'running, stopped, ready, promoted, rolled_back, finished, failed or discarded';
COMMENT ON COLUMN run.epoch IS 'the epoch of the stream in which it was begun';
COMMENT ON COLUMN run.arguments IS 'what was asked for, as JSON';
COMMENT ON COLUMN run.cursor IS 'the last stream sequence that is done';
COMMENT ON COLUMN run.goal IS 'the last stream sequence to do';
COMMENT ON COLUMN run.counts IS 'what was done so far, as JSON';
COMMENT ON COLUMN run.reason IS 'why, as the operator said';
COMMENT ON COLUMN run.proof IS 'the closing statement, as JSON';
COMMENT ON COLUMN run.started_at_ms IS 'when it was begun';
COMMENT ON COLUMN run.updated_at_ms IS 'when it last moved';
COMMENT ON COLUMN run.ended_at_ms IS 'when it came to its end';
COMMENT ON COLUMN run.holder IS 'the process that works on it; empty: none';
COMMENT ON COLUMN run.held_until_ms IS 'until when nobody else may go on with it';
CREATE INDEX run_by_kind ON run (kind, started_at_ms);

-- Sessions that a run changed, while it waits for what comes of it at Google.
CREATE TABLE run_session (
    session_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    PRIMARY KEY (session_id, run_id)
);
COMMENT ON TABLE run_session IS 'Sessions that a run changed, while it waits for what comes of it at Google.';
COMMENT ON COLUMN run_session.session_id IS 'the session';
COMMENT ON COLUMN run_session.run_id IS 'the run';
CREATE INDEX run_session_by_run ON run_session (run_id);

-- Writes to Google that were begun for those sessions: counted where they are begun, whichever process makes them.
CREATE TABLE run_write (
    id BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    operation TEXT NOT NULL
);
COMMENT ON TABLE run_write IS 'Writes to Google that were begun for those sessions: counted where they are begun, whichever process makes them.';
COMMENT ON COLUMN run_write.id IS 'order of the writes';
COMMENT ON COLUMN run_write.run_id IS 'the run';
COMMENT ON COLUMN run_write.session_id IS 'the session';
COMMENT ON COLUMN run_write.operation IS 'insert, patch, delete, restore or add_conference';
CREATE INDEX run_write_by_run ON run_write (run_id);

-- No call is made to write at Google before its intent is kept, so an intent that is new is one such call.
CREATE FUNCTION note_write_of_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO run_write (run_id, session_id, operation)
    SELECT run_id, session_id, NEW.intent_operation FROM run_session WHERE session_id = NEW.session_id;
    RETURN NULL;
END;
$$;
CREATE TRIGGER session_meet_event_write AFTER UPDATE OF intent_operation ON session_meet_event FOR EACH ROW
WHEN (NEW.intent_operation IS NOT NULL
    AND (OLD.intent_operation IS NULL OR OLD.intent_at_ms IS DISTINCT FROM NEW.intent_at_ms))
EXECUTE FUNCTION note_write_of_run();

-- The projection as a rebuild folds it anew, beside the one that is served.
CREATE TABLE shadow_session (
    session_id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    traceparent TEXT
);
COMMENT ON TABLE shadow_session IS 'The projection as a rebuild folds it anew, beside the one that is served.';
COMMENT ON COLUMN shadow_session.session_id IS 'the session';
COMMENT ON COLUMN shadow_session.state IS 'the folded session as canonical JSON';
COMMENT ON COLUMN shadow_session.traceparent IS 'W3C trace context of the head''s publisher';

-- What a promotion changes or has changed, for the way back.
CREATE TABLE shadow_change (
    session_id TEXT NOT NULL PRIMARY KEY,
    state_before TEXT,
    traceparent_before TEXT,
    state_after TEXT
);
COMMENT ON TABLE shadow_change IS 'What a promotion changes or has changed, for the way back.';
COMMENT ON COLUMN shadow_change.session_id IS 'the session';
COMMENT ON COLUMN shadow_change.state_before IS 'the folded session before, as canonical JSON; empty: it was not there';
COMMENT ON COLUMN shadow_change.traceparent_before IS 'W3C trace context before';
COMMENT ON COLUMN shadow_change.state_after IS 'the folded session afterwards; empty: not promoted';

-- Sessions whose events the stream no longer holds: kept as they are, whatever is replayed or rebuilt.
CREATE TABLE history_expired (
    session_id TEXT NOT NULL PRIMARY KEY,
    noted_at_ms BIGINT NOT NULL
);
COMMENT ON TABLE history_expired IS 'Sessions whose events the stream no longer holds: kept as they are, whatever is replayed or rebuilt.';
COMMENT ON COLUMN history_expired.session_id IS 'the session';
COMMENT ON COLUMN history_expired.noted_at_ms IS 'when that was seen first';
