-- Connecting and disconnecting a teacher's Google account. The columns have the same comments in
-- ../postgres/0005_connect.sql.

ALTER TABLE oauth_flow ADD COLUMN browser_hash TEXT; -- SHA-256 of the cookie of the browser that began it, in hex; empty where no browser was seen
ALTER TABLE oauth_flow ADD COLUMN is_account_change INTEGER NOT NULL DEFAULT 0; -- 1 when another Google account than before may be connected
ALTER TABLE oauth_flow ADD COLUMN used_at_ms INTEGER; -- when a callback consumed it; the verifier is empty from then on
CREATE INDEX oauth_flow_by_teacher ON oauth_flow (teacher_id, created_at_ms);

-- A teacher's account that is being disconnected, or was.
CREATE TABLE google_disconnection (
    teacher_id TEXT NOT NULL, -- the teacher
    google_sub TEXT NOT NULL, -- the Google account
    phase TEXT NOT NULL, -- removing (events first), revoking or done
    refresh_token BLOB, -- sealed as in teacher_google_credential; only to be revoked, wiped when done
    requested_at_ms INTEGER NOT NULL, -- when it was asked for
    deadline_ms INTEGER NOT NULL, -- when the phase ends even if it did not get to its end
    awaited_lease INTEGER, -- token of the calendar's lease under which calls may have been under way when the grant was taken away
    attempts INTEGER NOT NULL, -- how often Google was asked to revoke
    next_attempt_at_ms INTEGER, -- when to look next; empty when done
    lease_token INTEGER NOT NULL, -- fencing token: grows with every claim
    lease_until_ms INTEGER, -- until when nobody else may go on with it; empty: nobody does
    outcome TEXT, -- how it ended: revoked, shared, no_token or given_up
    finished_at_ms INTEGER, -- when it was done
    PRIMARY KEY (teacher_id, google_sub)
) STRICT;
CREATE INDEX google_disconnection_by_due ON google_disconnection (next_attempt_at_ms);
CREATE INDEX google_disconnection_by_account ON google_disconnection (google_sub);
CREATE INDEX teacher_google_credential_by_account ON teacher_google_credential (google_sub);
