//! `credential seed`: all lines or none.

use meet_projector::cli::credential::{SeedError, seed};
use meet_projector::credential::{KeyRing, Slot};
use meet_projector::model::{TeacherId, UnixMillis};
use meet_projector::store::{DatabaseUrl, Store, TokenStatus};
use secrecy::{ExposeSecret as _, SecretString};

const T0: UnixMillis = UnixMillis::new(1_790_000_000_000);

#[tokio::test]
async fn grants_come_from_a_file_sealed_and_all_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", folder.path().join("meet.db").display());
    let store = Store::open(&DatabaseUrl(url.into())).await.unwrap();
    store.migrate().await.unwrap();
    let keys = KeyRing::new(&SecretString::from("42".repeat(32)), &[]).unwrap();
    let scopes = ["openid".to_owned(), "https://www.googleapis.com/auth/calendar.events".to_owned()];
    let file = folder.path().join("grants.jsonl");
    let line = |n: u8| {
        format!(
            r#"{{"teacherId":"tch_{n}","email":"t{n}@example.com","googleSub":"100{n}","refreshToken":"1//MARKER-{n}"}}"#
        )
    };

    std::fs::write(&file, format!("{}\n{}\n{{\n", line(1), line(2))).unwrap();
    let error = seed(&store, &keys, &scopes, &file, T0).await.unwrap_err();
    assert!(matches!(&error, SeedError::Mistakes(mistakes) if mistakes.len() == 1 && mistakes[0].line == 3), "{error}");
    assert!(!format!("{error} {error:?}").contains("MARKER"));
    assert!(store.credentials().await.unwrap().is_empty());

    std::fs::write(&file, format!("{}\n{}\n", line(1), line(2))).unwrap();
    assert_eq!(seed(&store, &keys, &scopes, &file, T0).await.unwrap(), 2);
    let stored = store.credential(&TeacherId::parse("tch_2").unwrap()).await.unwrap().unwrap();
    assert_eq!((stored.status, stored.calendar.as_str()), (TokenStatus::Connected, "primary"));
    assert_eq!(stored.scopes, "openid https://www.googleapis.com/auth/calendar.events");
    let token =
        keys.open(Slot::refresh_token(&stored.teacher, &stored.account), &stored.refresh_token.unwrap()).unwrap();
    assert_eq!(token.expose_secret(), "1//MARKER-2");

    let missing = seed(&store, &keys, &scopes, &folder.path().join("none"), T0).await.unwrap_err();
    assert!(missing.to_string().contains("none cannot be read"), "{missing}");
}
