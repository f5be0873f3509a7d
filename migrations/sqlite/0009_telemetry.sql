-- How long it takes from an event to its link is measured from here, whichever process does which part.
ALTER TABLE session ADD COLUMN published_at_ms INTEGER; -- when the server stored the event of the head; empty for sessions folded before this column
