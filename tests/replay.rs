//! What a person does after an outage: replay, rebuild, verify, with the real program beside a running service.

/// Tests on SQLite, and all of them on PostgreSQL in one test, which starts one server for all.
macro_rules! on_both {
    ($($story:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")] async fn $story() { super::$story(Setup::sqlite()).await; })+
            use crate::support::service::Setup;
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn on_postgres() {
            $(
                println!("story {}", stringify!($story));
                $story(crate::support::service::Setup::postgres()).await;
            )+
        }
    };
}

mod disasters;
mod drift;
mod program;
mod rebuilding;
mod replaying;
mod verifying;
