-- Times are Unix milliseconds, ids and JSON are text, flags are 0 or 1. The tables and columns are those of
-- ../postgres/0001_tables.sql; every column has its comment there, too.

-- A booking session as the events seen so far describe it, and the document that readers get.
CREATE TABLE session (
    session_id TEXT NOT NULL PRIMARY KEY, -- the booking backend's id
    head_epoch INTEGER NOT NULL, -- epoch of the event with the highest (epoch, version)
    head_version INTEGER NOT NULL, -- version of that event: the booking row's own counter
    head_sequence INTEGER NOT NULL, -- stream sequence of that event; of two with equal rank the lower is kept
    status TEXT NOT NULL, -- scheduled or canceled, as that event says
    teacher_id TEXT NOT NULL, -- on whose calendar, as that event says
    content_hash TEXT NOT NULL, -- hash of that event's content, by which a duplicate is told from a conflict
    details_epoch INTEGER, -- epoch of the highest event that carried details; empty when none did
    details_version INTEGER, -- version of that event
    details_sequence INTEGER, -- stream sequence of that event
    kind TEXT, -- private, group or course
    title TEXT, -- title of the lesson
    description TEXT, -- description of the lesson, when there is one
    starts_at_ms INTEGER, -- start
    ends_at_ms INTEGER, -- end
    time_zone TEXT, -- IANA time zone in which Google shows the lesson
    attendees TEXT, -- JSON array of {email, displayName}
    url TEXT, -- the session's page
    desired_hash TEXT NOT NULL, -- what Google should hold; nothing is due there while it stays the same
    traceparent TEXT, -- W3C trace context of the head's publisher
    meet_status TEXT NOT NULL, -- meetStatus of the document
    document TEXT NOT NULL, -- the status document as JSON, updatedAt included
    document_revision INTEGER NOT NULL, -- grows by one with every change of the document
    document_updated_at_ms INTEGER NOT NULL, -- updatedAt of the document
    list_starts_at_ms INTEGER NOT NULL -- start for the order of lists; the smallest number where there is none
) STRICT;
CREATE INDEX session_by_start ON session (list_starts_at_ms, session_id);
CREATE INDEX session_by_teacher ON session (teacher_id, list_starts_at_ms, session_id);
CREATE INDEX session_by_status ON session (meet_status, list_starts_at_ms, session_id);

-- One event that exists or may exist on a calendar at Google.
CREATE TABLE session_meet_event (
    session_id TEXT NOT NULL REFERENCES session (session_id), -- the session it is for
    ordinal INTEGER NOT NULL, -- counts the rows of the session, from 0
    teacher_id TEXT NOT NULL, -- on whose calendar
    google_sub TEXT, -- the Google account; empty until a call was planned
    calendar_id TEXT, -- the calendar, most often primary
    generation INTEGER, -- counts the ids used for this session and account, from 0
    event_id TEXT, -- the derived id at Google
    want TEXT NOT NULL, -- present or absent
    desired_revision INTEGER NOT NULL, -- counts the changes of what is wanted
    phase TEXT NOT NULL, -- what is known: new, unknown, missing, live, tombstone, absent or foreign
    etag TEXT, -- ETag as last seen
    ical_uid TEXT, -- iCalendar UID as Google gave it
    written_hash TEXT, -- hash of the last write that Google is known to have taken
    accepted_hash TEXT, -- hash of the form in which Google took it
    observed_hash TEXT, -- hash of the form as last seen
    meet_link TEXT, -- the link, kept while a new time is being written
    conference_state TEXT NOT NULL, -- none, pending, ready, failed, not_allowed or replaced
    conference_attempt INTEGER NOT NULL, -- which create request is the current one, from 0
    conference_since_ms INTEGER, -- since when that request is pending
    intent_operation TEXT, -- the write that was begun and is not recorded yet
    intent_at_ms INTEGER, -- when it was begun
    insert_unclear_at_ms INTEGER, -- the last insert whose outcome was not clear
    taken_at_ms INTEGER, -- when Google said that the id is used
    confirmed_at_ms INTEGER, -- the last write that Google confirmed
    late_checks INTEGER NOT NULL, -- late verifications done after a delete that found nothing
    refetches INTEGER NOT NULL, -- ETag conflicts in a row
    repairs INTEGER NOT NULL, -- automatic repairs since repairs_since_ms
    repairs_since_ms INTEGER, -- start of the window in which repairs counts
    failure_code TEXT, -- why the row is not where it should be
    failure_message TEXT, -- the same for a person
    failure_since_ms INTEGER, -- since when
    failure_attempts INTEGER, -- requests in a row that failed
    settled INTEGER NOT NULL, -- 1 when Google was seen to agree with the newest wish
    next_attempt_at_ms INTEGER, -- when to look next; empty: not before something wakes the row
    woken_lease INTEGER NOT NULL DEFAULT 0, -- token of the lease during which something woke the row: its result must not put the row to sleep
    PRIMARY KEY (session_id, ordinal)
) STRICT;
CREATE INDEX session_meet_event_by_teacher ON session_meet_event (teacher_id, next_attempt_at_ms);

-- When a teacher's calendar is due, and who works on it: at most one process.
CREATE TABLE teacher_queue (
    teacher_id TEXT NOT NULL PRIMARY KEY, -- the teacher
    due_at_ms INTEGER, -- not later than the next attempt of any of the teacher's rows; empty: none
    starts_at_ms INTEGER NOT NULL, -- about the soonest start among the rows that are due first; the order of claims
    lease_token INTEGER NOT NULL, -- fencing token: grows with every claim
    lease_until_ms INTEGER -- until when nobody else may claim the calendar; empty: nobody holds it
) STRICT, WITHOUT ROWID;
CREATE INDEX teacher_queue_by_due ON teacher_queue (due_at_ms);

-- A teacher's grant.
CREATE TABLE teacher_google_credential (
    teacher_id TEXT NOT NULL PRIMARY KEY, -- the teacher
    google_sub TEXT NOT NULL, -- the Google account
    google_email TEXT, -- its address, for people
    calendar_id TEXT NOT NULL, -- the calendar to write to
    token_status TEXT NOT NULL, -- CONNECTED, RECONNECT_REQUIRED, SCOPE_MISSING, ADMIN_BLOCKED or DISCONNECTED
    token_version INTEGER NOT NULL, -- grows with every change of the tokens or the status
    refresh_token BLOB, -- sealed
    access_token BLOB, -- sealed
    access_expires_at_ms INTEGER, -- when the access token ends
    scopes TEXT NOT NULL, -- granted scopes, space-separated
    cool_down_until_ms INTEGER, -- no writes before this
    cool_down_step INTEGER NOT NULL, -- how many cool-downs in a row
    connected_at_ms INTEGER NOT NULL, -- first connect of this account
    last_refresh_at_ms INTEGER, -- last time Google gave an access token
    last_error TEXT, -- why the last refresh failed, without secrets
    refresh_turn INTEGER NOT NULL, -- fencing token: grows with every turn to refresh
    refresh_until_ms INTEGER -- until when the turn runs; empty: nobody refreshes
) STRICT;

-- A consent that was begun at Google and did not come back yet.
CREATE TABLE oauth_flow (
    state_hash TEXT NOT NULL PRIMARY KEY, -- SHA-256 of the state parameter, in hex
    teacher_id TEXT NOT NULL, -- who connects
    verifier BLOB NOT NULL, -- PKCE verifier, sealed
    return_to TEXT, -- where the browser goes afterwards; one of the allow-list
    created_at_ms INTEGER NOT NULL, -- when it was begun
    expires_at_ms INTEGER NOT NULL -- when the state stops being accepted
) STRICT;
CREATE INDEX oauth_flow_by_expiry ON oauth_flow (expires_at_ms);

-- A message given up on, with all that is needed to mend and requeue it.
CREATE TABLE dead_letter (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- its own id
    epoch INTEGER NOT NULL, -- epoch of the message
    sequence INTEGER NOT NULL, -- stream sequence of the message
    subject TEXT, -- subject; empty while the message has to be read back from the stream
    headers TEXT, -- JSON array of [name, value], as subject
    payload BLOB, -- the first 256 KiB of the payload, as subject
    class TEXT NOT NULL, -- why, as a word
    reason TEXT NOT NULL, -- why and what to fix, as a sentence
    session_id TEXT, -- the session, where the message names one
    at_ms INTEGER NOT NULL, -- when it was given up on
    state TEXT NOT NULL, -- open, requeued or discarded
    UNIQUE (epoch, sequence)
) STRICT;
CREATE INDEX dead_letter_open ON dead_letter (id) WHERE state = 'open';
CREATE INDEX dead_letter_incomplete ON dead_letter (id) WHERE payload IS NULL;

-- An incarnation of the stream.
CREATE TABLE epoch (
    epoch INTEGER NOT NULL PRIMARY KEY, -- its number, from 1
    stream TEXT NOT NULL, -- the stream's name
    created TEXT NOT NULL, -- the stream's creation time as the server gave it
    first_sequence INTEGER NOT NULL, -- the first sequence that belongs to this epoch
    consumer TEXT NOT NULL, -- name of the durable consumer
    opened_at_ms INTEGER NOT NULL, -- when it was opened
    reason TEXT NOT NULL -- why it was opened
) STRICT;

-- CloudEvent sources seen in an epoch.
CREATE TABLE epoch_source (
    epoch INTEGER NOT NULL, -- the epoch
    source TEXT NOT NULL, -- the source
    PRIMARY KEY (epoch, source)
) STRICT, WITHOUT ROWID;

-- Messages whose identity is kept, to know the stream again.
CREATE TABLE anchor (
    epoch INTEGER NOT NULL, -- the epoch
    sequence INTEGER NOT NULL, -- stream sequence
    stored_at_ms INTEGER NOT NULL, -- when the server stored the message
    fingerprint TEXT NOT NULL, -- hash of what identifies the message
    PRIMARY KEY (epoch, sequence)
) STRICT, WITHOUT ROWID;

-- The highest message processed in an epoch.
CREATE TABLE position (
    epoch INTEGER NOT NULL PRIMARY KEY, -- the epoch
    highest_sequence INTEGER NOT NULL, -- its stream sequence
    stored_at_ms INTEGER NOT NULL, -- when the server stored it
    fingerprint TEXT NOT NULL -- hash of what identifies it
) STRICT;

-- Sequences that were folded or became dead letters, as ranges that neither touch nor overlap.
CREATE TABLE inbox (
    epoch INTEGER NOT NULL, -- the epoch
    first_sequence INTEGER NOT NULL, -- first of the range
    last_sequence INTEGER NOT NULL, -- last of the range
    PRIMARY KEY (epoch, first_sequence)
) STRICT, WITHOUT ROWID;

-- Results that still have to be published, in the order in which they were committed.
CREATE TABLE outbox (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- order of commit
    message_id TEXT NOT NULL, -- Nats-Msg-Id and CloudEvent id
    key TEXT NOT NULL, -- messages with the same key keep their order
    subject TEXT NOT NULL, -- where to publish
    payload TEXT NOT NULL, -- the CloudEvent
    traceparent TEXT, -- W3C trace context, passed on
    created_at_ms INTEGER NOT NULL -- when it was written
) STRICT;
CREATE INDEX outbox_by_key ON outbox (key, id);

-- Work that one process at a time does for all.
CREATE TABLE lease (
    name TEXT NOT NULL PRIMARY KEY, -- which work
    holder TEXT NOT NULL, -- the process that does it
    until_ms INTEGER NOT NULL -- when it stops being its alone
) STRICT;

-- Tokens for the HTTP API, without their secrets.
CREATE TABLE api_token (
    id TEXT NOT NULL PRIMARY KEY, -- the public part
    name TEXT NOT NULL, -- what it is for
    role TEXT NOT NULL, -- reader, operator or admin
    secret_sha256 BLOB NOT NULL, -- SHA-256 of the secret
    created_at_ms INTEGER NOT NULL, -- when it was made
    last_used_at_ms INTEGER, -- last use, to the minute
    revoked_at_ms INTEGER -- when it was revoked
) STRICT;

-- Who did what, and why.
CREATE TABLE operator_action (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, -- order of the actions
    action TEXT NOT NULL, -- what was done
    target TEXT NOT NULL, -- to what
    reason TEXT, -- why, as the operator said
    at_ms INTEGER NOT NULL -- when
) STRICT;
