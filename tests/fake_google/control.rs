//! The control routes do what the handle does.

use reqwest::Method;
use serde_json::{Value, json};

use super::{Answer, Client, ID, answer, lesson, refusal};

impl Client {
    async fn control(&self, method: Method, path: &str, body: &Value) -> Answer {
        let root = &self.google.running.control_uri;
        answer(self.http.request(method, format!("{root}{path}")).json(body)).await
    }
}

#[tokio::test]
async fn faults_accounts_and_teachers_are_steered_over_http() {
    let client = Client::start().await;
    let page = client.http.get(client.google.running.control_uri.clone()).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("/_control/faults"));

    let made = json!({"email": "new@example.com", "refreshToken": "1//new"});
    assert_eq!(client.control(Method::POST, "/accounts", &made).await, (200, json!({"refreshToken": "1//new"})));
    let settings = json!({"conference": {"successAfter": 3}, "hiddenGets": 1});
    let (status, now) = client.control(Method::PATCH, "/accounts/teacher-0@example.com", &settings).await;
    assert_eq!((status, &now["conference"], &now["quota"]), (200, &json!({"successAfter": 3}), &json!("free")));
    let wrong = client.control(Method::PATCH, "/accounts/teacher-0@example.com", &json!({"speed": 1})).await;
    assert_eq!(wrong.0, 400);
    client.control(Method::PATCH, "/accounts/teacher-0@example.com", &json!({"hiddenGets": 0})).await;

    let rule = json!({"operations": ["insert"], "times": 1,
        "fault": {"commit": "onRelease", "ending": {"refuse": {"status": 503, "reason": "backendError"}}}});
    assert_eq!(client.control(Method::POST, "/faults", &rule).await, (200, json!({"id": 1})));
    assert_eq!(refusal(&client.insert(&lesson(ID)).await), (503, "backendError"));
    assert_eq!(client.control(Method::POST, "/late/release", &json!({})).await.1, json!({"released": 1}));

    let event = format!("/accounts/teacher-0@example.com/events/{ID}");
    let moved = json!({"action": "move", "start": "2026-12-03T09:00:00Z", "end": "2026-12-03T10:00:00Z"});
    let (status, view) = client.control(Method::POST, &event, &moved).await;
    assert_eq!((status, &view["startsAt"]), (200, &json!("2026-12-03T09:00:00Z")));
    let (_, state) = client.control(Method::GET, "/state", &Value::Null).await;
    assert_eq!((&state["faults"][0]["hits"], &state["counters"]["committed"]["insert"]), (&json!(1), &json!(1)));
    let (_, checked) = client.control(Method::POST, "/check", &json!([{"session": "ses_1", "live": null}])).await;
    assert_eq!(checked["problems"].as_array().unwrap().len(), 1);
    let (_, requests) = client.control(Method::GET, "/requests?operation=insert", &Value::Null).await;
    assert_eq!((&requests["items"][0]["effect"], &requests["items"][0]["session"]), (&json!("late"), &json!("ses_1")));

    client.control(Method::POST, &event, &json!({"action": "delete"})).await;
    let trash = client.control(Method::POST, "/accounts/teacher-0@example.com/empty-trash", &json!({})).await;
    assert_eq!(trash.1, json!({"purged": 1}));
    client.control(Method::DELETE, "/faults", &Value::Null).await;
    client.control(Method::POST, "/reset", &Value::Null).await;
    let (_, state) = client.control(Method::GET, "/state", &Value::Null).await;
    assert_eq!((&state["faults"], &state["counters"]["requests"]), (&json!([]), &json!({})));
}
