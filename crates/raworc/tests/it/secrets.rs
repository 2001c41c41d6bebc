//! Secrets of accounts.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use crate::accounts::{call, member};
use crate::harness::TestServer;
use crate::providers::{database, files_with, forms};
use crate::raw::send;
use crate::server_or_skip;

#[tokio::test]
async fn a_secret_is_added_changed_and_removed() {
    let server = server_or_skip!();
    let body = json!({ "name": "github", "value": "first-value-0001", "hosts": ["api.github.com"] });
    let create = |body: &Value| {
        let request = server.request(Method::POST, "/secrets").header("idempotency-key", "once").json(body);
        async move { request.send().await.unwrap() }
    };
    let made = create(&body).await;
    assert_eq!(made.status(), 201);
    let etag = made.headers()["etag"].clone();
    let made: Value = made.json().await.unwrap();
    let expected = json!({ "id": made["id"], "name": "github", "hosts": ["api.github.com"], "header": "Authorization",
                           "format": "Bearer {}", "env": null, "in_container": false,
                           "created_at": made["created_at"], "updated_at": made["updated_at"] });
    assert_eq!(made, expected);
    assert_eq!(create(&body).await.json::<Value>().await.unwrap(), made);
    let mut other = body.clone();
    other["value"] = json!("other-value-0002");
    assert_eq!(create(&other).await.status(), 422, "the same key, another value");
    assert_eq!(server.post("/secrets", body.clone()).await.1["code"], "name_taken");
    let stored = || -> String {
        let query = "SELECT value FROM secrets";
        database(&server).query_row(query, [], |row| row.get(0)).unwrap()
    };
    let before = stored();
    let bare = json!({ "name": "git", "hosts": ["a.test:8443", "b.test"], "header": "x-key", "format": "{}" });
    let put = |tag: reqwest::header::HeaderValue| {
        let request = server.request(Method::PUT, "/secrets/github").header("if-match", tag).json(&bare);
        async move { request.send().await.unwrap() }
    };
    let changed = put(etag.clone()).await;
    assert_eq!(changed.status(), 200);
    let changed: Value = changed.json().await.unwrap();
    assert_eq!((&changed["hosts"], &changed["header"]), (&bare["hosts"], &json!("x-key")));
    assert_eq!(stored(), before, "without a value, it stays");
    assert_eq!(server.get("/secrets/github").await.0, 404);
    let id = made["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/secrets/{id}")).await.1, changed);
    let stale = server.request(Method::PUT, "/secrets/git").header("if-match", etag).json(&bare).send().await.unwrap();
    assert_eq!(stale.status(), 412);
    let env = json!({ "name": "git", "value": "line one\nline two", "env": "GIT_KEY" });
    let (status, changed) = server.put("/secrets/git", env).await;
    assert_eq!((status.as_u16(), &changed["env"], &changed["in_container"]), (200, &json!("GIT_KEY"), &json!(true)));
    assert_ne!(stored(), before);
    assert_eq!(server.get("/secrets").await.1["items"], json!([changed]));
    assert_eq!(server.delete("/secrets/git").await.0, 204);
    assert_eq!(server.delete("/secrets/git").await.0, 404);
    let (_, audit) = server.get(&format!("/audit?target={id}")).await;
    let actions: Vec<&Value> = audit["items"].as_array().unwrap().iter().rev().map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["secret.create", "secret.update", "secret.update", "secret.delete"]);
}

#[tokio::test]
async fn secrets_are_ones_own() {
    let server = server_or_skip!();
    let (alice, bob) = (member(&server, "alice").await, member(&server, "bob").await);
    let body = |host: &str| json!({ "name": "token", "value": "v", "hosts": [host] });
    let mut ids = Vec::new();
    for (who, host) in [(&alice, "alice.test"), (&bob, "bob.test")] {
        let (status, made) = call(&server, who, "POST", "/secrets", Some(body(host))).await;
        assert_eq!(status, 201, "everyone has names of their own: {made}");
        ids.push(made["id"].as_str().unwrap().to_owned());
    }
    for (who, host) in [(&alice, "alice.test"), (&bob, "bob.test")] {
        assert_eq!(call(&server, who, "GET", "/secrets/token", None).await.1["hosts"], json!([host]));
        assert_eq!(call(&server, who, "GET", "/secrets", None).await.1["items"].as_array().unwrap().len(), 1);
    }
    let of_alice = format!("/secrets/{}", ids[0]);
    for (method, body) in [("GET", None), ("PUT", Some(body("bob.test"))), ("DELETE", None)] {
        let (status, problem) = call(&server, &bob, method, &of_alice, body).await;
        assert_eq!((status, &problem["code"]), (404, &json!("not_found")), "{method}");
    }
    assert_eq!(server.get("/secrets").await.1["items"], json!([]));
    assert_eq!(server.get("/secrets/token").await.0, 404);
    assert_eq!(server.delete(&of_alice).await.0, 204, "an administrator may, by its id");
    assert_eq!(call(&server, &bob, "GET", "/secrets/token", None).await.0, 200);
}

#[tokio::test]
async fn what_is_wrong_with_a_secret_is_named_and_changes_nothing() {
    let server = server_or_skip!();
    let sound = json!({ "name": "s", "value": "sound-value-0001", "hosts": ["api.test"] });
    assert_eq!(server.post("/secrets", sound.clone()).await.0, 201);
    let before = server.get("/secrets").await.1;
    let hosts: Vec<String> = (0..33).map(|n| format!("h{n}.test")).collect();
    for (wrong, field) in [
        (json!({ "name": "a b" }), "name"),
        (json!({ "surprise": 1 }), "surprise"),
        (json!({ "value": "" }), "value"),
        (json!({ "value": "wrong-value-0001\r\nx: y" }), "value"),
        (json!({ "value": "wrong-value-größe" }), "value"),
        (json!({ "value": "x".repeat(32 * 1024 + 1) }), "value"),
        (json!({ "hosts": [] }), "hosts"),
        (json!({ "hosts": hosts }), "hosts"),
        (json!({ "hosts": ["ok.test", "*"] }), "hosts[1]"),
        (json!({ "hosts": ["https://api.test"] }), "hosts[0]"),
        (json!({ "header": "Host" }), "header"),
        (json!({ "header": "Transfer-Encoding" }), "header"),
        (json!({ "header": "a\r\nb" }), "header"),
        (json!({ "format": "Bearer" }), "format"),
        (json!({ "format": "{}\r\nx: y" }), "format"),
        (json!({ "env": "A" }), "hosts"),
        (json!({ "env": "A=B", "hosts": [] }), "env"),
        (json!({ "env": "RAWORC_X", "hosts": [] }), "env"),
        (json!({ "env": "A", "hosts": [], "header": "x" }), "header"),
        (json!({ "env": "A", "hosts": [], "value": "wrong-value\u{0}" }), "value"),
    ] {
        for (method, target) in [("POST", "/secrets"), ("PUT", "/secrets/s")] {
            let mut body = sound.clone();
            body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            let answer = send(&server, method, target, &[], body.to_string().as_bytes());
            answer.must_be_problem(422, "invalid_input", &format!("{method} {wrong}"));
            assert_eq!(answer.fields(), [field], "{method} {wrong}: {}", answer.json());
            let text = String::from_utf8(answer.body).unwrap();
            assert!(!text.contains("-value"), "{method} {wrong}: {text}");
        }
    }
    send(&server, "POST", "/secrets", &[], br#"{"name":"t","hosts":["a.test"]}"#).must_be_problem(
        422,
        "invalid_input",
        "no value",
    );
    assert_eq!(server.get("/secrets").await.1, before);
    for n in 1..200 {
        let body = json!({ "name": format!("s{n}"), "value": "v", "env": "A" });
        assert_eq!(server.post("/secrets", body).await.0, 201);
    }
    assert_eq!(
        server.post("/secrets", json!({ "name": "x", "value": "v", "env": "A" })).await.1["code"],
        "invalid_state"
    );
}

#[tokio::test]
async fn a_value_is_nowhere_but_in_its_encrypted_form() {
    let mut server = server_or_skip!();
    let values = ["known-value-31f0ac9d2e", "other-value-77e1b0c4aa"];
    let texts: Vec<String> = values.into_iter().flat_map(forms).collect();
    let added = server
        .shell(&format!("printf '{}\\n' | raworc secret add github --host api.github.com --value-stdin", values[0]));
    assert!(added.status.success(), "{added:?}");
    let changed =
        server.shell(&format!("printf {} | raworc secret update github --env GITHUB_TOKEN --value-stdin", values[1]));
    assert!(changed.status.success(), "{changed:?}");
    let mut answers = vec![String::from_utf8([added.stdout, changed.stdout].concat()).unwrap()];
    for arguments in [
        &["secret", "list"][..],
        &["secret", "get", "github"],
        &["secret", "get", "github", "--output", "json"],
        &["secret", "add", "x", "--host", "a.test", "--value", values[0]],
        &["secret", "update", "github", &format!("--value={}", values[0])],
        &["audit"],
    ] {
        let output = server.cli(arguments);
        assert_eq!(output.status.success(), !arguments.iter().any(|text| text.starts_with("--value")), "{output:?}");
        answers.push(String::from_utf8([output.stdout, output.stderr].concat()).unwrap());
    }
    for answer in &answers {
        assert!(!texts.iter().any(|text| answer.contains(text)), "{answer}");
    }
    assert_eq!(files_with(&server.data_dir(), &texts), [""; 0]);
    server.stop();
    assert_eq!(files_with(&server.data_dir(), &texts), [""; 0]);
    assert!(!texts.iter().any(|text| server.log().contains(text)));
    // The key file is said to be missing for them, too, and a new key of it is used for them.
    let key_file = server.data_dir().join("secrets.key");
    let old = fs::read_to_string(&key_file).unwrap();
    fs::remove_file(&key_file).unwrap();
    server.start_again();
    assert_eq!(word(&server).await, "key_file_unusable");
    assert_eq!(server.get("/secrets/github").await.0, 200);
    let another = json!({ "name": "x", "value": "v", "env": "A" });
    assert_eq!(server.post("/secrets", another.clone()).await.1["code"], "key_file_unusable");
    let new = "cd".repeat(32);
    fs::write(&key_file, &new).unwrap();
    assert_eq!(word(&server).await, "undecryptable");
    fs::write(&key_file, format!("{new}\n{old}")).unwrap();
    assert_eq!(word(&server).await, "ok");
    fs::write(&key_file, &new).unwrap();
    assert_eq!(word(&server).await, "ok", "it was encrypted anew");
    fs::remove_file(&key_file).unwrap();
    assert_eq!(server.delete("/secrets/github").await.0, 204);
    assert_eq!(server.post("/secrets", another).await.0, 201, "nothing needed the old file any more");
    assert_eq!(word(&server).await, "ok");
}

async fn word(server: &TestServer) -> String {
    server.get("/health").await.1["parts"]["secrets"].as_str().unwrap().to_owned()
}
