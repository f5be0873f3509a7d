//! Stories from booking event to Meet link and back, on real parts. Each runs on SQLite, the key ones on PostgreSQL too.

/// Tests on SQLite, and on PostgreSQL those that are named after it: in one test, which starts one server for all.
macro_rules! stories {
    (on both databases: $($both:ident),+; $(on sqlite: $($sqlite:ident),+;)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")] async fn $both() { super::$both(Setup::sqlite()).await; })+
            $($(#[tokio::test(flavor = "multi_thread")] async fn $sqlite() { super::$sqlite(Setup::sqlite()).await; })+)?
            use crate::support::service::Setup;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn on_postgres() {
            $(
                println!("story {}", stringify!($both));
                $both(Setup::postgres()).await;
            )+
        }
    };
}

mod calendar;
mod drain;
mod grants;
mod outages;
mod refusals;
mod results;
mod stops;
mod stream;
