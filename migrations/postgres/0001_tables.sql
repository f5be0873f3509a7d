-- Times are Unix milliseconds, ids and JSON are text. The tables and columns are those of ../sqlite/0001_tables.sql.

-- A booking session as the events seen so far describe it, and the document that readers get.
CREATE TABLE session (
    session_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    head_epoch BIGINT NOT NULL,
    head_version BIGINT NOT NULL,
    head_sequence BIGINT NOT NULL,
    status TEXT NOT NULL,
    teacher_id TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    details_epoch BIGINT,
    details_version BIGINT,
    details_sequence BIGINT,
    kind TEXT,
    title TEXT,
    description TEXT,
    starts_at_ms BIGINT,
    ends_at_ms BIGINT,
    time_zone TEXT,
    attendees TEXT,
    url TEXT,
    desired_hash TEXT NOT NULL,
    traceparent TEXT,
    meet_status TEXT NOT NULL,
    document TEXT NOT NULL,
    document_revision BIGINT NOT NULL,
    document_updated_at_ms BIGINT NOT NULL,
    list_starts_at_ms BIGINT NOT NULL
);
COMMENT ON TABLE session IS 'A booking session as the events seen so far describe it, and the document that readers get.';
COMMENT ON COLUMN session.session_id IS 'the booking backend''s id';
COMMENT ON COLUMN session.head_epoch IS 'epoch of the event with the highest (epoch, version)';
COMMENT ON COLUMN session.head_version IS 'version of that event: the booking row''s own counter';
COMMENT ON COLUMN session.head_sequence IS 'stream sequence of that event; of two with equal rank the lower is kept';
COMMENT ON COLUMN session.status IS 'scheduled or canceled, as that event says';
COMMENT ON COLUMN session.teacher_id IS 'on whose calendar, as that event says';
COMMENT ON COLUMN session.content_hash IS 'hash of that event''s content, by which a duplicate is told from a conflict';
COMMENT ON COLUMN session.details_epoch IS 'epoch of the highest event that carried details; empty when none did';
COMMENT ON COLUMN session.details_version IS 'version of that event';
COMMENT ON COLUMN session.details_sequence IS 'stream sequence of that event';
COMMENT ON COLUMN session.kind IS 'private, group or course';
COMMENT ON COLUMN session.title IS 'title of the lesson';
COMMENT ON COLUMN session.description IS 'description of the lesson, when there is one';
COMMENT ON COLUMN session.starts_at_ms IS 'start';
COMMENT ON COLUMN session.ends_at_ms IS 'end';
COMMENT ON COLUMN session.time_zone IS 'IANA time zone in which Google shows the lesson';
COMMENT ON COLUMN session.attendees IS 'JSON array of {email, displayName}';
COMMENT ON COLUMN session.url IS 'the session''s page';
COMMENT ON COLUMN session.desired_hash IS 'what Google should hold; nothing is due there while it stays the same';
COMMENT ON COLUMN session.traceparent IS 'W3C trace context of the head''s publisher';
COMMENT ON COLUMN session.meet_status IS 'meetStatus of the document';
COMMENT ON COLUMN session.document IS 'the status document as JSON, updatedAt included';
COMMENT ON COLUMN session.document_revision IS 'grows by one with every change of the document';
COMMENT ON COLUMN session.document_updated_at_ms IS 'updatedAt of the document';
COMMENT ON COLUMN session.list_starts_at_ms IS 'start for the order of lists; the smallest number where there is none';
CREATE INDEX session_by_start ON session (list_starts_at_ms, session_id);
CREATE INDEX session_by_teacher ON session (teacher_id, list_starts_at_ms, session_id);
CREATE INDEX session_by_status ON session (meet_status, list_starts_at_ms, session_id);

-- One event that exists or may exist on a calendar at Google.
CREATE TABLE session_meet_event (
    session_id TEXT NOT NULL REFERENCES session (session_id),
    ordinal BIGINT NOT NULL,
    teacher_id TEXT NOT NULL,
    google_sub TEXT,
    calendar_id TEXT,
    generation BIGINT,
    event_id TEXT,
    want TEXT NOT NULL,
    desired_revision BIGINT NOT NULL,
    phase TEXT NOT NULL,
    etag TEXT,
    ical_uid TEXT,
    written_hash TEXT,
    accepted_hash TEXT,
    observed_hash TEXT,
    meet_link TEXT,
    conference_state TEXT NOT NULL,
    conference_attempt BIGINT NOT NULL,
    conference_since_ms BIGINT,
    intent_operation TEXT,
    intent_at_ms BIGINT,
    insert_unclear_at_ms BIGINT,
    taken_at_ms BIGINT,
    confirmed_at_ms BIGINT,
    late_checks BIGINT NOT NULL,
    refetches BIGINT NOT NULL,
    repairs BIGINT NOT NULL,
    repairs_since_ms BIGINT,
    failure_code TEXT,
    failure_message TEXT,
    failure_since_ms BIGINT,
    failure_attempts BIGINT,
    settled BOOLEAN NOT NULL,
    next_attempt_at_ms BIGINT,
    woken_lease BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (session_id, ordinal)
);
COMMENT ON TABLE session_meet_event IS 'One event that exists or may exist on a calendar at Google.';
COMMENT ON COLUMN session_meet_event.session_id IS 'the session it is for';
COMMENT ON COLUMN session_meet_event.ordinal IS 'counts the rows of the session, from 0';
COMMENT ON COLUMN session_meet_event.teacher_id IS 'on whose calendar';
COMMENT ON COLUMN session_meet_event.google_sub IS 'the Google account; empty until a call was planned';
COMMENT ON COLUMN session_meet_event.calendar_id IS 'the calendar, most often primary';
COMMENT ON COLUMN session_meet_event.generation IS 'counts the ids used for this session and account, from 0';
COMMENT ON COLUMN session_meet_event.event_id IS 'the derived id at Google';
COMMENT ON COLUMN session_meet_event.want IS 'present or absent';
COMMENT ON COLUMN session_meet_event.desired_revision IS 'counts the changes of what is wanted';
COMMENT ON COLUMN session_meet_event.phase IS 'what is known: new, unknown, missing, live, tombstone, absent or foreign';
COMMENT ON COLUMN session_meet_event.etag IS 'ETag as last seen';
COMMENT ON COLUMN session_meet_event.ical_uid IS 'iCalendar UID as Google gave it';
COMMENT ON COLUMN session_meet_event.written_hash IS 'hash of the last write that Google is known to have taken';
COMMENT ON COLUMN session_meet_event.accepted_hash IS 'hash of the form in which Google took it';
COMMENT ON COLUMN session_meet_event.observed_hash IS 'hash of the form as last seen';
COMMENT ON COLUMN session_meet_event.meet_link IS 'the link, kept while a new time is being written';
COMMENT ON COLUMN session_meet_event.conference_state IS 'none, pending, ready, failed, not_allowed or replaced';
COMMENT ON COLUMN session_meet_event.conference_attempt IS 'which create request is the current one, from 0';
COMMENT ON COLUMN session_meet_event.conference_since_ms IS 'since when that request is pending';
COMMENT ON COLUMN session_meet_event.intent_operation IS 'the write that was begun and is not recorded yet';
COMMENT ON COLUMN session_meet_event.intent_at_ms IS 'when it was begun';
COMMENT ON COLUMN session_meet_event.insert_unclear_at_ms IS 'the last insert whose outcome was not clear';
COMMENT ON COLUMN session_meet_event.taken_at_ms IS 'when Google said that the id is used';
COMMENT ON COLUMN session_meet_event.confirmed_at_ms IS 'the last write that Google confirmed';
COMMENT ON COLUMN session_meet_event.late_checks IS 'late verifications done after a delete that found nothing';
COMMENT ON COLUMN session_meet_event.refetches IS 'ETag conflicts in a row';
COMMENT ON COLUMN session_meet_event.repairs IS 'automatic repairs since repairs_since_ms';
COMMENT ON COLUMN session_meet_event.repairs_since_ms IS 'start of the window in which repairs counts';
COMMENT ON COLUMN session_meet_event.failure_code IS 'why the row is not where it should be';
COMMENT ON COLUMN session_meet_event.failure_message IS 'the same for a person';
COMMENT ON COLUMN session_meet_event.failure_since_ms IS 'since when';
COMMENT ON COLUMN session_meet_event.failure_attempts IS 'requests in a row that failed';
COMMENT ON COLUMN session_meet_event.settled IS 'whether Google was seen to agree with the newest wish';
COMMENT ON COLUMN session_meet_event.next_attempt_at_ms IS 'when to look next; empty: not before something wakes the row';
COMMENT ON COLUMN session_meet_event.woken_lease IS 'token of the lease during which something woke the row: its result must not put the row to sleep';
CREATE INDEX session_meet_event_by_teacher ON session_meet_event (teacher_id, next_attempt_at_ms);

-- When a teacher's calendar is due, and who works on it: at most one process.
CREATE TABLE teacher_queue (
    teacher_id TEXT NOT NULL PRIMARY KEY,
    due_at_ms BIGINT,
    starts_at_ms BIGINT NOT NULL,
    lease_token BIGINT NOT NULL,
    lease_until_ms BIGINT
);
COMMENT ON TABLE teacher_queue IS 'When a teacher''s calendar is due, and who works on it: at most one process.';
COMMENT ON COLUMN teacher_queue.teacher_id IS 'the teacher';
COMMENT ON COLUMN teacher_queue.due_at_ms IS 'not later than the next attempt of any of the teacher''s rows; empty: none';
COMMENT ON COLUMN teacher_queue.starts_at_ms IS 'about the soonest start among the rows that are due first; the order of claims';
COMMENT ON COLUMN teacher_queue.lease_token IS 'fencing token: grows with every claim';
COMMENT ON COLUMN teacher_queue.lease_until_ms IS 'until when nobody else may claim the calendar; empty: nobody holds it';
CREATE INDEX teacher_queue_by_due ON teacher_queue (due_at_ms);

-- A teacher's grant.
CREATE TABLE teacher_google_credential (
    teacher_id TEXT NOT NULL PRIMARY KEY,
    google_sub TEXT NOT NULL,
    google_email TEXT,
    calendar_id TEXT NOT NULL,
    token_status TEXT NOT NULL,
    token_version BIGINT NOT NULL,
    refresh_token BYTEA,
    access_token BYTEA,
    access_expires_at_ms BIGINT,
    scopes TEXT NOT NULL,
    cool_down_until_ms BIGINT,
    cool_down_step BIGINT NOT NULL,
    connected_at_ms BIGINT NOT NULL,
    last_refresh_at_ms BIGINT,
    last_error TEXT,
    refresh_turn BIGINT NOT NULL,
    refresh_until_ms BIGINT
);
COMMENT ON TABLE teacher_google_credential IS 'A teacher''s grant.';
COMMENT ON COLUMN teacher_google_credential.teacher_id IS 'the teacher';
COMMENT ON COLUMN teacher_google_credential.google_sub IS 'the Google account';
COMMENT ON COLUMN teacher_google_credential.google_email IS 'its address, for people';
COMMENT ON COLUMN teacher_google_credential.calendar_id IS 'the calendar to write to';
COMMENT ON COLUMN teacher_google_credential.token_status IS 'CONNECTED, RECONNECT_REQUIRED, SCOPE_MISSING, ADMIN_BLOCKED or DISCONNECTED';
COMMENT ON COLUMN teacher_google_credential.token_version IS 'grows with every change of the tokens or the status';
COMMENT ON COLUMN teacher_google_credential.refresh_token IS 'sealed';
COMMENT ON COLUMN teacher_google_credential.access_token IS 'sealed';
COMMENT ON COLUMN teacher_google_credential.access_expires_at_ms IS 'when the access token ends';
COMMENT ON COLUMN teacher_google_credential.scopes IS 'granted scopes, space-separated';
COMMENT ON COLUMN teacher_google_credential.cool_down_until_ms IS 'no writes before this';
COMMENT ON COLUMN teacher_google_credential.cool_down_step IS 'how many cool-downs in a row';
COMMENT ON COLUMN teacher_google_credential.connected_at_ms IS 'first connect of this account';
COMMENT ON COLUMN teacher_google_credential.last_refresh_at_ms IS 'last time Google gave an access token';
COMMENT ON COLUMN teacher_google_credential.last_error IS 'why the last refresh failed, without secrets';
COMMENT ON COLUMN teacher_google_credential.refresh_turn IS 'fencing token: grows with every turn to refresh';
COMMENT ON COLUMN teacher_google_credential.refresh_until_ms IS 'until when the turn runs; empty: nobody refreshes';

-- A consent that was begun at Google and did not come back yet.
CREATE TABLE oauth_flow (
    state_hash TEXT NOT NULL PRIMARY KEY,
    teacher_id TEXT NOT NULL,
    verifier BYTEA NOT NULL,
    return_to TEXT,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL
);
COMMENT ON TABLE oauth_flow IS 'A consent that was begun at Google and did not come back yet.';
COMMENT ON COLUMN oauth_flow.state_hash IS 'SHA-256 of the state parameter, in hex';
COMMENT ON COLUMN oauth_flow.teacher_id IS 'who connects';
COMMENT ON COLUMN oauth_flow.verifier IS 'PKCE verifier, sealed';
COMMENT ON COLUMN oauth_flow.return_to IS 'where the browser goes afterwards; one of the allow-list';
COMMENT ON COLUMN oauth_flow.created_at_ms IS 'when it was begun';
COMMENT ON COLUMN oauth_flow.expires_at_ms IS 'when the state stops being accepted';
CREATE INDEX oauth_flow_by_expiry ON oauth_flow (expires_at_ms);

-- A message given up on, with all that is needed to mend and requeue it.
CREATE TABLE dead_letter (
    id BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    epoch BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    subject TEXT,
    headers TEXT,
    payload BYTEA,
    class TEXT NOT NULL,
    reason TEXT NOT NULL,
    session_id TEXT,
    at_ms BIGINT NOT NULL,
    state TEXT NOT NULL,
    UNIQUE (epoch, sequence)
);
COMMENT ON TABLE dead_letter IS 'A message given up on, with all that is needed to mend and requeue it.';
COMMENT ON COLUMN dead_letter.id IS 'its own id';
COMMENT ON COLUMN dead_letter.epoch IS 'epoch of the message';
COMMENT ON COLUMN dead_letter.sequence IS 'stream sequence of the message';
COMMENT ON COLUMN dead_letter.subject IS 'subject; empty while the message has to be read back from the stream';
COMMENT ON COLUMN dead_letter.headers IS 'JSON array of [name, value], as subject';
COMMENT ON COLUMN dead_letter.payload IS 'the first 256 KiB of the payload, as subject';
COMMENT ON COLUMN dead_letter.class IS 'why, as a word';
COMMENT ON COLUMN dead_letter.reason IS 'why and what to fix, as a sentence';
COMMENT ON COLUMN dead_letter.session_id IS 'the session, where the message names one';
COMMENT ON COLUMN dead_letter.at_ms IS 'when it was given up on';
COMMENT ON COLUMN dead_letter.state IS 'open, requeued or discarded';
CREATE INDEX dead_letter_open ON dead_letter (id) WHERE state = 'open';
CREATE INDEX dead_letter_incomplete ON dead_letter (id) WHERE payload IS NULL;

-- An incarnation of the stream.
CREATE TABLE epoch (
    epoch BIGINT NOT NULL PRIMARY KEY,
    stream TEXT NOT NULL,
    created TEXT NOT NULL,
    first_sequence BIGINT NOT NULL,
    consumer TEXT NOT NULL,
    opened_at_ms BIGINT NOT NULL,
    reason TEXT NOT NULL
);
COMMENT ON TABLE epoch IS 'An incarnation of the stream.';
COMMENT ON COLUMN epoch.epoch IS 'its number, from 1';
COMMENT ON COLUMN epoch.stream IS 'the stream''s name';
COMMENT ON COLUMN epoch.created IS 'the stream''s creation time as the server gave it';
COMMENT ON COLUMN epoch.first_sequence IS 'the first sequence that belongs to this epoch';
COMMENT ON COLUMN epoch.consumer IS 'name of the durable consumer';
COMMENT ON COLUMN epoch.opened_at_ms IS 'when it was opened';
COMMENT ON COLUMN epoch.reason IS 'why it was opened';

-- CloudEvent sources seen in an epoch.
CREATE TABLE epoch_source (
    epoch BIGINT NOT NULL,
    source TEXT NOT NULL,
    PRIMARY KEY (epoch, source)
);
COMMENT ON TABLE epoch_source IS 'CloudEvent sources seen in an epoch.';
COMMENT ON COLUMN epoch_source.epoch IS 'the epoch';
COMMENT ON COLUMN epoch_source.source IS 'the source';

-- Messages whose identity is kept, to know the stream again.
CREATE TABLE anchor (
    epoch BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    stored_at_ms BIGINT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (epoch, sequence)
);
COMMENT ON TABLE anchor IS 'Messages whose identity is kept, to know the stream again.';
COMMENT ON COLUMN anchor.epoch IS 'the epoch';
COMMENT ON COLUMN anchor.sequence IS 'stream sequence';
COMMENT ON COLUMN anchor.stored_at_ms IS 'when the server stored the message';
COMMENT ON COLUMN anchor.fingerprint IS 'hash of what identifies the message';

-- The highest message processed in an epoch.
CREATE TABLE position (
    epoch BIGINT NOT NULL PRIMARY KEY,
    highest_sequence BIGINT NOT NULL,
    stored_at_ms BIGINT NOT NULL,
    fingerprint TEXT NOT NULL
);
COMMENT ON TABLE position IS 'The highest message processed in an epoch.';
COMMENT ON COLUMN position.epoch IS 'the epoch';
COMMENT ON COLUMN position.highest_sequence IS 'its stream sequence';
COMMENT ON COLUMN position.stored_at_ms IS 'when the server stored it';
COMMENT ON COLUMN position.fingerprint IS 'hash of what identifies it';

-- Sequences that were folded or became dead letters, as ranges that neither touch nor overlap.
CREATE TABLE inbox (
    epoch BIGINT NOT NULL,
    first_sequence BIGINT NOT NULL,
    last_sequence BIGINT NOT NULL,
    PRIMARY KEY (epoch, first_sequence)
);
COMMENT ON TABLE inbox IS 'Sequences that were folded or became dead letters, as ranges that neither touch nor overlap.';
COMMENT ON COLUMN inbox.epoch IS 'the epoch';
COMMENT ON COLUMN inbox.first_sequence IS 'first of the range';
COMMENT ON COLUMN inbox.last_sequence IS 'last of the range';

-- Results that still have to be published, in the order in which they were committed.
CREATE TABLE outbox (
    id BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message_id TEXT NOT NULL,
    key TEXT NOT NULL,
    subject TEXT NOT NULL,
    payload TEXT NOT NULL,
    traceparent TEXT,
    created_at_ms BIGINT NOT NULL
);
COMMENT ON TABLE outbox IS 'Results that still have to be published, in the order in which they were committed.';
COMMENT ON COLUMN outbox.id IS 'order of commit';
COMMENT ON COLUMN outbox.message_id IS 'Nats-Msg-Id and CloudEvent id';
COMMENT ON COLUMN outbox.key IS 'messages with the same key keep their order';
COMMENT ON COLUMN outbox.subject IS 'where to publish';
COMMENT ON COLUMN outbox.payload IS 'the CloudEvent';
COMMENT ON COLUMN outbox.traceparent IS 'W3C trace context, passed on';
COMMENT ON COLUMN outbox.created_at_ms IS 'when it was written';
CREATE INDEX outbox_by_key ON outbox (key, id);

-- Work that one process at a time does for all.
CREATE TABLE lease (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    until_ms BIGINT NOT NULL
);
COMMENT ON TABLE lease IS 'Work that one process at a time does for all.';
COMMENT ON COLUMN lease.name IS 'which work';
COMMENT ON COLUMN lease.holder IS 'the process that does it';
COMMENT ON COLUMN lease.until_ms IS 'when it stops being its alone';

-- Tokens for the HTTP API, without their secrets.
CREATE TABLE api_token (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    secret_sha256 BYTEA NOT NULL,
    created_at_ms BIGINT NOT NULL,
    last_used_at_ms BIGINT,
    revoked_at_ms BIGINT
);
COMMENT ON TABLE api_token IS 'Tokens for the HTTP API, without their secrets.';
COMMENT ON COLUMN api_token.id IS 'the public part';
COMMENT ON COLUMN api_token.name IS 'what it is for';
COMMENT ON COLUMN api_token.role IS 'reader, operator or admin';
COMMENT ON COLUMN api_token.secret_sha256 IS 'SHA-256 of the secret';
COMMENT ON COLUMN api_token.created_at_ms IS 'when it was made';
COMMENT ON COLUMN api_token.last_used_at_ms IS 'last use, to the minute';
COMMENT ON COLUMN api_token.revoked_at_ms IS 'when it was revoked';

-- Who did what, and why.
CREATE TABLE operator_action (
    id BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    reason TEXT,
    at_ms BIGINT NOT NULL
);
COMMENT ON TABLE operator_action IS 'Who did what, and why.';
COMMENT ON COLUMN operator_action.id IS 'order of the actions';
COMMENT ON COLUMN operator_action.action IS 'what was done';
COMMENT ON COLUMN operator_action.target IS 'to what';
COMMENT ON COLUMN operator_action.reason IS 'why, as the operator said';
COMMENT ON COLUMN operator_action.at_ms IS 'when';
