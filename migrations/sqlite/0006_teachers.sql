-- How long grants live, who waits for one, and what the operators were told. Conventions as in 0001_tables.sql.

ALTER TABLE teacher_google_credential ADD COLUMN refresh_expires_at_ms INTEGER; -- when the refresh token ends by itself; empty: it does not, as far as Google said
ALTER TABLE teacher_google_credential ADD COLUMN touch_at_ms INTEGER; -- when the grant is used again if nothing else uses it, so that it does not die unused; empty: three weeks after it came
ALTER TABLE teacher_google_credential ADD COLUMN refresh_failing_since_ms INTEGER; -- since when refreshes fail although the grant may be good; empty: they do not
ALTER TABLE teacher_google_credential ADD COLUMN refresh_not_before_ms INTEGER; -- no refresh ahead of need before this; empty: at any time

-- Rows that wait for the teacher's connection: few, and asked for by every status of a teacher.
CREATE INDEX session_meet_event_waiting ON session_meet_event (teacher_id, session_id)
    WHERE failure_code IN ('TEACHER_NOT_CONNECTED', 'RECONNECT_REQUIRED', 'SCOPE_MISSING', 'ADMIN_BLOCKED');

-- What the operators were told, by cause: once for all processes, and across restarts.
CREATE TABLE notice (
    cause TEXT NOT NULL PRIMARY KEY, -- what it is about
    revision INTEGER NOT NULL, -- grows with every change; changes are compare-and-set on it
    opened_at_ms INTEGER, -- since when the cause is there; empty: it is not
    seen_at_ms INTEGER, -- when it was last seen
    opening_told_at_ms INTEGER, -- when this appearance of the cause was told first; empty: not yet
    told_at_ms INTEGER, -- when it was told last
    members TEXT NOT NULL, -- JSON array of those affected that were told, sorted
    outgoing TEXT, -- text that the webhook still has to get; empty: none
    outgoing_at_ms INTEGER, -- when that text was written
    attempts INTEGER NOT NULL, -- posts of that text that failed, or are under way
    next_attempt_at_ms INTEGER -- no post before this; while one is under way, the time at which it counts as lost
) STRICT, WITHOUT ROWID;
