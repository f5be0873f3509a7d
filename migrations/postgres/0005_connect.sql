-- Connecting and disconnecting a teacher's Google account.

ALTER TABLE oauth_flow ADD COLUMN browser_hash TEXT;
ALTER TABLE oauth_flow ADD COLUMN is_account_change BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE oauth_flow ADD COLUMN used_at_ms BIGINT;
COMMENT ON COLUMN oauth_flow.browser_hash IS 'SHA-256 of the cookie of the browser that began it, in hex; empty where no browser was seen';
COMMENT ON COLUMN oauth_flow.is_account_change IS 'whether another Google account than before may be connected';
COMMENT ON COLUMN oauth_flow.used_at_ms IS 'when a callback consumed it; the verifier is empty from then on';
CREATE INDEX oauth_flow_by_teacher ON oauth_flow (teacher_id, created_at_ms);

-- A teacher's account that is being disconnected, or was.
CREATE TABLE google_disconnection (
    teacher_id TEXT NOT NULL,
    google_sub TEXT NOT NULL,
    phase TEXT NOT NULL,
    refresh_token BYTEA,
    requested_at_ms BIGINT NOT NULL,
    deadline_ms BIGINT NOT NULL,
    awaited_lease BIGINT,
    attempts BIGINT NOT NULL,
    next_attempt_at_ms BIGINT,
    lease_token BIGINT NOT NULL,
    lease_until_ms BIGINT,
    outcome TEXT,
    finished_at_ms BIGINT,
    PRIMARY KEY (teacher_id, google_sub)
);
COMMENT ON TABLE google_disconnection IS 'A teacher''s account that is being disconnected, or was.';
COMMENT ON COLUMN google_disconnection.teacher_id IS 'the teacher';
COMMENT ON COLUMN google_disconnection.google_sub IS 'the Google account';
COMMENT ON COLUMN google_disconnection.phase IS 'removing (events first), revoking or done';
COMMENT ON COLUMN google_disconnection.refresh_token IS 'sealed as in teacher_google_credential; only to be revoked, wiped when done';
COMMENT ON COLUMN google_disconnection.requested_at_ms IS 'when it was asked for';
COMMENT ON COLUMN google_disconnection.deadline_ms IS 'when the phase ends even if it did not get to its end';
COMMENT ON COLUMN google_disconnection.awaited_lease IS 'token of the calendar''s lease under which calls may have been under way when the grant was taken away';
COMMENT ON COLUMN google_disconnection.attempts IS 'how often Google was asked to revoke';
COMMENT ON COLUMN google_disconnection.next_attempt_at_ms IS 'when to look next; empty when done';
COMMENT ON COLUMN google_disconnection.lease_token IS 'fencing token: grows with every claim';
COMMENT ON COLUMN google_disconnection.lease_until_ms IS 'until when nobody else may go on with it; empty: nobody does';
COMMENT ON COLUMN google_disconnection.outcome IS 'how it ended: revoked, shared, no_token or given_up';
COMMENT ON COLUMN google_disconnection.finished_at_ms IS 'when it was done';
CREATE INDEX google_disconnection_by_due ON google_disconnection (next_attempt_at_ms);
CREATE INDEX google_disconnection_by_account ON google_disconnection (google_sub);
CREATE INDEX teacher_google_credential_by_account ON teacher_google_credential (google_sub);
