//! JWTs of the backend: every rule with a token that keeps it and tokens that break it; keys that are published.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{Method, StatusCode};
use data_encoding::BASE64URL_NOPAD;
use meet_projector::api::auth::{JwksSource, JwtOptions, PublicKey, keys_of_set};
use serde_json::{Value, json};

use super::fixture::{Answer, Api, START, send, sqlite_that};
use super::signing::{RSA_PUBLIC, SECRET, options, p256_jwk, rsa_jwk, seconds, token, token_of};

const PATH: &str = "/api/google/meet/ses_1";

async fn api_with(jwt: JwtOptions) -> Api {
    let api = sqlite_that(|options| options.jwt = jwt).await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    api
}

async fn get(api: &Api, token: &str) -> Answer {
    send(&api.router, &Method::GET, PATH, &[("authorization", &format!("Bearer {token}"))]).await
}

/// `200`, or status and code.
async fn outcome(api: &Api, token: &str) -> String {
    let answer = get(api, token).await;
    let status = answer.status.as_u16();
    if status == 200 { "200".to_owned() } else { format!("{status} {}", answer.code()) }
}

fn claims(change: Value) -> String {
    let mut all = json!({"sub": "usr_1", "exp": seconds(300), "role": "reader"});
    let Value::Object(change) = change else { panic!("claims are an object: {change}") };
    for (name, value) in change {
        all[name] = value;
    }
    all.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    all.to_string()
}

#[tokio::test]
async fn each_algorithm_verifies_with_its_own_key_and_nothing_else_does() {
    let api = api_with(options()).await;
    let good = claims(json!({}));
    let long = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "x".repeat(8_000));
    let table = [
        ("hs256", r#"{"alg":"HS256"}"#, "200"),
        ("rs256", r#"{"alg":"RS256"}"#, "200"),
        ("es256", r#"{"alg":"ES256"}"#, "200"),
        ("eddsa", r#"{"alg":"EdDSA"}"#, "200"),
        ("rs256", r#"{"alg":"RS256","kid":"anything","typ":"at+jwt"}"#, "200"),
        ("hs256", r#"{"alg":"HS256","jku":"http://evil.example/keys","jwk":{"kty":"oct","k":"AAAA"}}"#, "200"),
        // Nobody signed it, in all spellings.
        ("nobody", r#"{"alg":"none"}"#, "401"),
        ("nobody", r#"{"alg":"None"}"#, "401"),
        ("nobody", r#"{"alg":""}"#, "401"),
        ("nobody", r#"{"alg":"HS256"}"#, "401"),
        ("nobody", r#"{"alg":"EdDSA"}"#, "401"),
        ("hs256", r#"{"alg":"none"}"#, "401"),
        // The right signature under another name, and the public key as if it were the secret.
        ("hs256 of the public key", r#"{"alg":"HS256"}"#, "401"),
        ("hs256 of the public key", r#"{"alg":"RS256"}"#, "401"),
        ("hs256", r#"{"alg":"RS256"}"#, "401"),
        ("rs256", r#"{"alg":"HS256"}"#, "401"),
        ("rs256", r#"{"alg":"ES256"}"#, "401"),
        ("es256", r#"{"alg":"EdDSA"}"#, "401"),
        ("eddsa", r#"{"alg":"ES256"}"#, "401"),
        ("rs384", r#"{"alg":"RS384"}"#, "401"),
        ("rs384", r#"{"alg":"RS256"}"#, "401"),
        ("rs256", r#"{"alg":"rs256"}"#, "401"),
        ("hs256 of another secret", r#"{"alg":"HS256"}"#, "401"),
        // Headers that are wrong or want more than we understand.
        ("hs256", r#"{"alg":"HS256","crit":["exp"]}"#, "401"),
        ("hs256", r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, "401"),
        ("hs256", r#"{"alg":"HS256","crit":[]}"#, "401"),
        ("hs256", r#"{"alg":"HS256","crit":null}"#, "401"),
        ("hs256", r#"{"alg":"none","alg":"HS256"}"#, "401"),
        ("hs256", r#"{"alg":["HS256"]}"#, "401"),
        ("hs256", r#"{"typ":"JWT"}"#, "401"),
        ("hs256", r#"["HS256"]"#, "401"),
        ("hs256", "", "401"),
        ("hs256", &long, "401"),
    ];
    for (by, header, expected) in table {
        let token = token_of(by, header, &good);
        let expected = if expected == "200" { "200" } else { "401 TOKEN_INVALID" };
        // The second time it may be remembered.
        for _ in 0..2 {
            assert_eq!(outcome(&api, &token).await, expected, "{by} {header}");
        }
    }
}

#[tokio::test]
async fn claims_have_to_be_right_and_in_time() {
    let api = api_with(JwtOptions {
        issuer: Some("https://school.example".into()),
        audience: Some("meet".into()),
        ..options()
    })
    .await;
    let ours = json!({"iss": "https://school.example", "aud": "meet"});
    let table = [
        (json!({}), "200"),
        (json!({"aud": ["other", "meet"]}), "200"),
        (json!({"exp": 1e15}), "200"),
        (json!({"exp": serde_json::from_str::<Value>(&format!("{}.5", seconds(300))).unwrap()}), "200"),
        (json!({"exp": seconds(-59)}), "200"),
        (json!({"exp": seconds(-61)}), "it has expired"),
        (json!({"exp": 0}), "it has expired"),
        (json!({"exp": -1}), "it has expired"),
        (json!({"exp": null}), "it has no exp"),
        (json!({"exp": seconds(300).to_string()}), "its claims are not what they should be"),
        (json!({"nbf": seconds(59)}), "200"),
        (json!({"nbf": seconds(61)}), "it is not valid yet"),
        (json!({"nbf": "soon"}), "its claims are not what they should be"),
        (json!({"iss": null}), "its iss is not the issuer that this service expects"),
        (json!({"iss": "https://school.example/"}), "its iss is not the issuer that this service expects"),
        (json!({"iss": ["https://school.example"]}), "its claims are not what they should be"),
        (json!({"aud": null}), "its aud is not the audience that this service is"),
        (json!({"aud": []}), "its aud is not the audience that this service is"),
        (json!({"aud": "meeting"}), "its aud is not the audience that this service is"),
        (json!({"aud": {"0": "meet"}}), "its claims are not what they should be"),
        (json!({"teacherId": "not an id"}), "its teacherId is not an id of a teacher"),
        (json!({"teacherId": 42}), "its claims are not what they should be"),
        (json!({"roles": "admin"}), "its claims are not what they should be"),
    ];
    for (change, expected) in table {
        let mut all = ours.clone();
        for (name, value) in change.as_object().unwrap() {
            all[name] = value.clone();
        }
        let token = token_of("es256", r#"{"alg":"ES256"}"#, &claims(all));
        for _ in 0..2 {
            let answer = get(&api, &token).await;
            if expected == "200" {
                assert_eq!(answer.status, StatusCode::OK, "{change}: {}", answer.text);
            } else {
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (StatusCode::UNAUTHORIZED, "TOKEN_INVALID"),
                    "{change}"
                );
                assert!(answer.json()["detail"].as_str().unwrap().ends_with(expected), "{change}: {}", answer.text);
                assert_eq!(answer.header("www-authenticate"), "Bearer error=\"invalid_token\"");
            }
        }
    }
    let twice = claims(ours).replace("\"role\":\"reader\"", "\"role\":\"reader\",\"role\":\"admin\"");
    assert_eq!(outcome(&api, &token_of("hs256", r#"{"alg":"HS256"}"#, &twice)).await, "401 TOKEN_INVALID");
}

#[tokio::test]
async fn what_was_verified_once_still_ends_in_time() {
    let api = api_with(options()).await;
    let token = token_of("rs256", r#"{"alg":"RS256"}"#, &claims(json!({"exp": seconds(10)})));
    assert_eq!(outcome(&api, &token).await, "200");
    api.clock.advance_ms(69_000);
    assert_eq!(outcome(&api, &token).await, "200");
    api.clock.advance_ms(1_100);
    assert_eq!(outcome(&api, &token).await, "401 TOKEN_INVALID");
}

#[tokio::test]
async fn a_token_that_is_cut_or_changed_is_refused() {
    let api = api_with(options()).await;
    for (by, alg) in [("hs256", "HS256"), ("rs256", "RS256"), ("es256", "ES256"), ("eddsa", "EdDSA")] {
        let good = token_of(by, &json!({"alg": alg}).to_string(), &claims(json!({})));
        assert_eq!(outcome(&api, &good).await, "200");
        let parts: Vec<&str> = good.split('.').collect();
        let [header, body, signature] = parts[..] else { panic!("three parts") };
        let other = BASE64URL_NOPAD.encode(claims(json!({"role": "admin"})).as_bytes());
        let mut flipped = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        flipped[7] ^= 1;
        let flipped = BASE64URL_NOPAD.encode(&flipped);
        let bad = [
            format!("{header}.{body}"),
            format!("{header}.{body}."),
            format!(".{body}.{signature}"),
            format!("{header}..{signature}"),
            format!("{header}.{body}.{signature}."),
            format!("{good}.{good}"),
            format!("{header}.{body}.{signature}=="),
            format!("{header}.{body}.{}", &signature[1..]),
            format!("{header}.{body}.{flipped}"),
            format!("{header}.{other}.{signature}"),
            format!("{header} .{body}.{signature}"),
            format!("{good}{}", "A".repeat(10_000)),
            "....".to_owned(),
            ".".repeat(20_000),
            "{}.{}.{}".to_owned(),
        ];
        for token in bad {
            assert_eq!(outcome(&api, &token).await, "401 TOKEN_INVALID", "{by}: {token:.200}");
        }
    }
}

#[tokio::test]
async fn roles_are_added_up_and_a_teacher_sees_their_own() {
    let api = api_with(options()).await;
    let table = [
        (json!({"role": "reader"}), "200"),
        (json!({"role": "operator"}), "200"),
        (json!({"roles": ["student", "admin", 7]}), "401 TOKEN_INVALID"),
        (json!({"roles": ["student", "admin"]}), "200"),
        (json!({"role": "student", "roles": ["reader"]}), "200"),
        (json!({"role": "Reader"}), "403 ROLE_MISSING"),
        (json!({"role": "student"}), "403 ROLE_MISSING"),
        (json!({}), "403 ROLE_MISSING"),
        (json!({"role": "teacher"}), "403 ROLE_MISSING"),
        (json!({"role": "teacher", "teacherId": "tch_1"}), "200"),
        (json!({"teacherId": "tch_1"}), "200"),
        (json!({"role": "teacher", "teacherId": "tch_2"}), "404 SESSION_NOT_FOUND"),
        (json!({"teacherId": "tch_2"}), "404 SESSION_NOT_FOUND"),
        (json!({"role": "teacher", "roles": ["operator"], "teacherId": "tch_2"}), "200"),
    ];
    for (claims, expected) in table {
        for _ in 0..2 {
            assert_eq!(outcome(&api, &token(&claims)).await, expected, "{claims}");
        }
    }
}

#[tokio::test]
async fn without_keys_no_jwt_is_accepted() {
    let api = api_with(JwtOptions::default()).await;
    assert_eq!(outcome(&api, &token(&json!({"role": "admin"}))).await, "401 TOKEN_INVALID");
    let empty = token_of("nobody", r#"{"alg":"HS256"}"#, &claims(json!({})));
    assert_eq!(outcome(&api, &empty).await, "401 TOKEN_INVALID");
}

#[test]
fn key_files_say_what_is_wrong_with_them() {
    let wrong = |text: &str| PublicKey::from_pem(text).unwrap_err().to_string();
    assert_eq!(wrong(""), "it holds no `-----BEGIN PUBLIC KEY-----` block");
    assert_eq!(wrong(SECRET), "it holds no `-----BEGIN PUBLIC KEY-----` block");
    assert_eq!(wrong(include_str!("keys/rsa1024.pub.pem")), "the RSA key has 1024 bits; 2048 to 8192 are allowed");
    assert_eq!(wrong(include_str!("keys/p384.pub.pem")), "it is neither an RSA, nor a P-256, nor an Ed25519 key");
    assert!(wrong(include_str!("keys/rsa.pem")).starts_with("it holds a private key, not a public key; keep it"));
    assert!(wrong(include_str!("keys/certificate.pem")).starts_with("it holds a certificate, not a public key;"));
    assert_eq!(wrong(&RSA_PUBLIC.replace("MIIB", "MIIC")), "its content is damaged");
    assert_eq!(wrong(&RSA_PUBLIC.replace("-----END", "")), "its content is damaged");
    for cut in 40..RSA_PUBLIC.len() - 1 {
        assert!(PublicKey::from_pem(&RSA_PUBLIC[..cut]).is_err() || RSA_PUBLIC[cut..].trim().is_empty(), "{cut}");
    }
}

#[test]
fn a_set_gives_its_usable_keys() {
    let count = |set: Value| keys_of_set(set.to_string().as_bytes()).map(|keys| keys.len());
    let with = |change: Value| {
        let mut key = rsa_jwk("a");
        for (name, value) in change.as_object().unwrap() {
            key[name] = value.clone();
        }
        count(json!({"keys": [key]})).is_ok()
    };
    assert_eq!(count(json!({"keys": [rsa_jwk("a"), p256_jwk("b"), {"kty": "oct", "k": "AAAA"}, {}, 7]})), Ok(2));
    assert!(with(json!({"use": null, "alg": null, "kid": null, "key_ops": ["verify"]})));
    for bad in [
        json!({"use": "enc"}),
        json!({"alg": "RS512"}),
        json!({"alg": "HS256"}),
        json!({"key_ops": ["sign"]}),
        json!({"n": "AQAB"}),
        json!({"e": "AQ"}),
        json!({"kty": "oct", "k": BASE64URL_NOPAD.encode(SECRET.as_bytes())}),
    ] {
        assert!(!with(bad.clone()), "{bad}");
    }
    let wrong = |text: &str| keys_of_set(text.as_bytes()).unwrap_err().to_string();
    assert_eq!(wrong(r#"{"keys":[]}"#), "it holds no key for RS256, ES256 or EdDSA");
    assert!(wrong("[]").starts_with("it is not a JSON Web Key Set:"));
}

/// A server of keys that counts its answers.
struct Published {
    url: url::Url,
    set: Arc<std::sync::Mutex<(u16, String)>>,
    answers: Arc<AtomicUsize>,
}

impl Published {
    async fn start(set: Value) -> Self {
        let (set, answers) = (Arc::new(std::sync::Mutex::new((200, set.to_string()))), Arc::new(AtomicUsize::new(0)));
        let (shared, counted) = (Arc::clone(&set), Arc::clone(&answers));
        let route = axum::routing::get(async move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let (status, body) = shared.lock().unwrap().clone();
            (StatusCode::from_u16(status).unwrap(), body)
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/keys", route)).await });
        Self { url, set, answers }
    }

    fn publish(&self, status: u16, body: impl Into<String>) {
        *self.set.lock().unwrap() = (status, body.into());
    }

    fn answers(&self) -> usize {
        self.answers.load(Ordering::SeqCst)
    }

    fn options(&self) -> JwtOptions {
        JwtOptions { jwks: Some(JwksSource::Url(self.url.clone())), ..JwtOptions::default() }
    }
}

fn named(by: &str, id: &str) -> String {
    let header = json!({"alg": by.to_uppercase(), "kid": id});
    token_of(by, &header.to_string(), &claims(json!({"jti": id})))
}

#[tokio::test]
async fn published_keys_are_rotated_without_a_pause() {
    let published = Published::start(json!({"keys": [rsa_jwk("one")]})).await;
    let api = api_with(published.options()).await;
    assert_eq!(outcome(&api, &named("rs256", "one")).await, "200");
    assert_eq!(published.answers(), 1);
    // Of a key that is known nothing new is asked, right or wrong; and a set makes nobody a signer by HMAC.
    for bad in [named("rs256", "one") + "A", token_of("hs256", r#"{"alg":"HS256","kid":"one"}"#, &claims(json!({})))] {
        assert_eq!(outcome(&api, &bad).await, "401 TOKEN_INVALID");
    }
    let wrong_key = token_of("es256", r#"{"alg":"RS256","kid":"one"}"#, &claims(json!({})));
    assert_eq!(outcome(&api, &wrong_key).await, "401 TOKEN_INVALID");
    assert_eq!(published.answers(), 1);

    published.publish(200, json!({"keys": [rsa_jwk("one"), p256_jwk("two")]}).to_string());
    let new = named("es256", "two");
    assert_eq!(outcome(&api, &new).await, "401 TOKEN_INVALID", "asked a moment ago");
    api.clock.advance_ms(10_000);
    assert_eq!(outcome(&api, &new).await, "200");
    assert_eq!(outcome(&api, &named("rs256", "one")).await, "200");
    assert_eq!(published.answers(), 2);
    // However many tokens name keys that nobody has.
    for n in 0..50 {
        assert_eq!(outcome(&api, &named("rs256", &n.to_string())).await, "401 TOKEN_INVALID");
    }
    assert_eq!(published.answers(), 2);
}

#[tokio::test]
async fn known_keys_go_on_working_when_they_cannot_be_read_again() {
    let published = Published::start(json!({"keys": [rsa_jwk("one")]})).await;
    let api = api_with(published.options()).await;
    assert_eq!(outcome(&api, &named("rs256", "one")).await, "200");
    let large = json!({"keys": [p256_jwk("two")], "padding": "x".repeat(300_000)}).to_string();
    for (status, body) in [(500, String::new()), (200, "<html>".into()), (200, r#"{"keys":[]}"#.into()), (200, large)] {
        published.publish(status, body);
        let before = published.answers();
        api.clock.advance_ms(10_000);
        assert_eq!(outcome(&api, &named("es256", "two")).await, "401 TOKEN_INVALID");
        assert_eq!(published.answers(), before + 1);
        assert_eq!(outcome(&api, &named("rs256", "one")).await, "200");
    }
}

#[tokio::test]
async fn keys_that_were_never_read_are_nobodys_fault() {
    let published = Published::start(json!({})).await;
    published.publish(503, "");
    let api = api_with(published.options()).await;
    let answer = get(&api, &named("rs256", "one")).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "KEYS_UNAVAILABLE"));
    assert_eq!(answer.header("retry-after"), "10");
    assert_eq!(api.get(PATH).await.status, StatusCode::OK, "API tokens do not mind");
}

#[tokio::test]
async fn a_set_in_a_file_works_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({"keys": [p256_jwk("two")]}).to_string()).unwrap();
    let jwks = Some(JwksSource::File(file.path().to_owned()));
    let api = api_with(JwtOptions { jwks, ..JwtOptions::default() }).await;
    assert_eq!(outcome(&api, &named("es256", "two")).await, "200");
    let nameless = token_of("es256", r#"{"alg":"ES256"}"#, &claims(json!({})));
    assert_eq!(outcome(&api, &nameless).await, "200");
}
