-- Migrations only add, so that a program that does not know the newest ones goes on working beside or after one that
-- does: a rolling upgrade, and the way back from it. One that takes something away adds its number here.
CREATE TABLE schema_break (
    migration INTEGER NOT NULL PRIMARY KEY -- number of the migration; programs that do not know it must not run
) STRICT;
