-- How long grants live, who waits for one, and what the operators were told. Conventions as in 0001_tables.sql.

ALTER TABLE teacher_google_credential ADD COLUMN refresh_expires_at_ms BIGINT;
ALTER TABLE teacher_google_credential ADD COLUMN touch_at_ms BIGINT;
ALTER TABLE teacher_google_credential ADD COLUMN refresh_failing_since_ms BIGINT;
ALTER TABLE teacher_google_credential ADD COLUMN refresh_not_before_ms BIGINT;
COMMENT ON COLUMN teacher_google_credential.refresh_expires_at_ms IS 'when the refresh token ends by itself; empty: it does not, as far as Google said';
COMMENT ON COLUMN teacher_google_credential.touch_at_ms IS 'when the grant is used again if nothing else uses it, so that it does not die unused; empty: three weeks after it came';
COMMENT ON COLUMN teacher_google_credential.refresh_failing_since_ms IS 'since when refreshes fail although the grant may be good; empty: they do not';
COMMENT ON COLUMN teacher_google_credential.refresh_not_before_ms IS 'no refresh ahead of need before this; empty: at any time';

-- Rows that wait for the teacher's connection: few, and asked for by every status of a teacher.
CREATE INDEX session_meet_event_waiting ON session_meet_event (teacher_id, session_id)
    WHERE failure_code IN ('TEACHER_NOT_CONNECTED', 'RECONNECT_REQUIRED', 'SCOPE_MISSING', 'ADMIN_BLOCKED');

CREATE TABLE notice (
    cause TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    revision BIGINT NOT NULL,
    opened_at_ms BIGINT,
    seen_at_ms BIGINT,
    opening_told_at_ms BIGINT,
    told_at_ms BIGINT,
    members TEXT NOT NULL,
    outgoing TEXT,
    outgoing_at_ms BIGINT,
    attempts BIGINT NOT NULL,
    next_attempt_at_ms BIGINT
);
COMMENT ON TABLE notice IS 'What the operators were told, by cause: once for all processes, and across restarts.';
COMMENT ON COLUMN notice.cause IS 'what it is about';
COMMENT ON COLUMN notice.revision IS 'grows with every change; changes are compare-and-set on it';
COMMENT ON COLUMN notice.opened_at_ms IS 'since when the cause is there; empty: it is not';
COMMENT ON COLUMN notice.seen_at_ms IS 'when it was last seen';
COMMENT ON COLUMN notice.opening_told_at_ms IS 'when this appearance of the cause was told first; empty: not yet';
COMMENT ON COLUMN notice.told_at_ms IS 'when it was told last';
COMMENT ON COLUMN notice.members IS 'JSON array of those affected that were told, sorted';
COMMENT ON COLUMN notice.outgoing IS 'text that the webhook still has to get; empty: none';
COMMENT ON COLUMN notice.outgoing_at_ms IS 'when that text was written';
COMMENT ON COLUMN notice.attempts IS 'posts of that text that failed, or are under way';
COMMENT ON COLUMN notice.next_attempt_at_ms IS 'no post before this; while one is under way, the time at which it counts as lost';
