//! The store: one suite for both databases, a fresh database for each case.

mod credentials;
mod fixtures;
mod ingest;
mod operate;
mod permutations;
mod races;
mod readers;
mod reconcile;
mod schema;

use fixtures::Kind;

/// Runs the cases one after the other; the name of the one that fails stands above its panic.
macro_rules! run {
    ($kind:ident; $($module:ident::$case:ident,)+) => {
        $(
            println!("case {}::{}", stringify!($module), stringify!($case));
            $module::$case($kind).await;
        )+
    };
}

async fn suite(kind: Kind) {
    run!(kind;
        schema::what_is_missing_is_said_and_applied_once,
        schema::a_newer_a_changed_and_an_empty_schema_are_told_apart,
        schema::several_processes_may_migrate_at_once,
        schema::every_column_has_a_comment,
        ingest::a_schedule_makes_a_session_a_row_a_document_and_a_result,
        ingest::every_field_survives,
        ingest::duplicates_and_redelivery_change_nothing,
        ingest::of_two_contents_of_a_version_the_lower_sequence_wins,
        ingest::what_is_refused_is_kept_once,
        ingest::the_position_waits_for_the_gap,
        ingest::an_epoch_may_begin_late,
        ingest::anchors_and_sources_tell_the_stream,
        ingest::a_group_is_all_or_nothing,
        ingest::everything_survives_a_restart,
        reconcile::a_claim_brings_all_that_a_plan_needs,
        reconcile::soonest_first_and_no_more_than_asked_for,
        reconcile::every_field_of_a_row_survives,
        reconcile::an_old_token_writes_nothing,
        reconcile::an_intent_needs_the_wish_it_was_planned_for,
        reconcile::a_result_never_hides_a_newer_wish,
        reconcile::an_origin_changes_the_cost_and_not_the_outcome,
        reconcile::a_turn_is_one_commit,
        reconcile::a_wake_up_outlives_the_result_it_overtook,
        reconcile::a_successor_takes_over_once_and_not_for_a_canceled_session,
        reconcile::the_end_of_a_row_wakes_the_one_that_waits,
        reconcile::two_rows_of_a_session_may_come_in_one_batch,
        reconcile::a_release_keeps_what_is_due,
        reconcile::a_dead_holder_leaves_work_to_the_next,
        credentials::a_grant_is_stored_replaced_and_wakes_its_rows,
        credentials::a_refresh_is_for_one,
        credentials::a_failed_refresh_ends_its_turn,
        credentials::cool_downs_grow_and_start_over,
        readers::documents_come_alone_together_and_in_pages,
        readers::counts_count,
        readers::results_keep_their_order_and_one_relay,
        readers::tokens_and_the_audit,
        operate::a_pause_holds_claims_until_it_ends,
        operate::a_retry_wakes_what_a_person_mended,
        operate::a_key_gives_one_answer,
        operate::a_mended_letter_is_folded_at_its_place,
        operate::the_last_calls_of_a_session_are_kept,
        operate::the_overview_names_what_needs_a_person,
        races::shuffled_halves_from_several_writers_end_alike,
        races::another_process_hears_of_a_commit,
        races::nobody_claims_what_another_holds,
        races::no_wake_up_is_lost,
        races::a_cancelled_fold_leaves_nothing_and_blocks_nobody,
        races::one_of_many_refreshes,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_on_sqlite() {
    suite(Kind::Sqlite).await;
    schema::only_files_are_served_and_by_one_process().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_on_postgres() {
    suite(Kind::Postgres).await;
    schema::a_lost_server_is_unavailable_not_wrong().await;
}

#[test]
fn any_order_ends_alike_on_sqlite() {
    permutations::any_order_ends_alike(Kind::Sqlite, 64);
}

#[test]
fn any_order_ends_alike_on_postgres() {
    permutations::any_order_ends_alike(Kind::Postgres, 24);
}
