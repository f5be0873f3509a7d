-- Long work of operators (replay, rebuild, verify, the search for leftovers): where it stands, what it did, its proof.
CREATE TABLE run (
    id TEXT NOT NULL PRIMARY KEY, -- its name, as commands take it
    kind TEXT NOT NULL, -- replay, rebuild, verify or leftovers
    state TEXT NOT NULL, -- running, stopped, ready, promoted, rolled_back, finished, failed or discarded
    epoch INTEGER NOT NULL, -- the epoch of the stream in which it was begun
    arguments TEXT NOT NULL, -- what was asked for, as JSON
    cursor INTEGER NOT NULL, -- the last stream sequence that is done
    goal INTEGER NOT NULL, -- the last stream sequence to do
    counts TEXT NOT NULL, -- what was done so far, as JSON
    reason TEXT, -- why, as the operator said
    proof TEXT, -- the closing statement, as JSON
    started_at_ms INTEGER NOT NULL, -- when it was begun
    updated_at_ms INTEGER NOT NULL, -- when it last moved
    ended_at_ms INTEGER, -- when it came to its end
    holder TEXT, -- the process that works on it; empty: none
    held_until_ms INTEGER NOT NULL -- until when nobody else may go on with it
) STRICT;
CREATE INDEX run_by_kind ON run (kind, started_at_ms);

-- Sessions that a run changed, while it waits for what comes of it at Google.
CREATE TABLE run_session (
    session_id TEXT NOT NULL, -- the session
    run_id TEXT NOT NULL, -- the run
    PRIMARY KEY (session_id, run_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_session_by_run ON run_session (run_id);

-- Writes to Google that were begun for those sessions: counted where they are begun, whichever process makes them.
CREATE TABLE run_write (
    id INTEGER NOT NULL PRIMARY KEY, -- order of the writes
    run_id TEXT NOT NULL, -- the run
    session_id TEXT NOT NULL, -- the session
    operation TEXT NOT NULL -- insert, patch, delete, restore or add_conference
) STRICT;
CREATE INDEX run_write_by_run ON run_write (run_id);

-- No call is made to write at Google before its intent is kept, so an intent that is new is one such call.
CREATE TRIGGER session_meet_event_write AFTER UPDATE OF intent_operation ON session_meet_event
WHEN NEW.intent_operation IS NOT NULL
    AND (OLD.intent_operation IS NULL OR OLD.intent_at_ms IS NOT NEW.intent_at_ms)
BEGIN
    INSERT INTO run_write (run_id, session_id, operation)
    SELECT run_id, session_id, NEW.intent_operation FROM run_session WHERE session_id = NEW.session_id;
END;

-- The projection as a rebuild folds it anew, beside the one that is served.
CREATE TABLE shadow_session (
    session_id TEXT NOT NULL PRIMARY KEY, -- the session
    state TEXT NOT NULL, -- the folded session as canonical JSON
    traceparent TEXT -- W3C trace context of the head's publisher
) STRICT;

-- What a promotion changes or has changed, for the way back.
CREATE TABLE shadow_change (
    session_id TEXT NOT NULL PRIMARY KEY, -- the session
    state_before TEXT, -- the folded session before, as canonical JSON; empty: it was not there
    traceparent_before TEXT, -- W3C trace context before
    state_after TEXT -- the folded session afterwards; empty: not promoted
) STRICT;

-- Sessions whose events the stream no longer holds: kept as they are, whatever is replayed or rebuilt.
CREATE TABLE history_expired (
    session_id TEXT NOT NULL PRIMARY KEY, -- the session
    noted_at_ms INTEGER NOT NULL -- when that was seen first
) STRICT;
