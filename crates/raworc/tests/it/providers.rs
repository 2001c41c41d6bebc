//! Providers of models: their life, their keys, and which models names mean.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::accounts::{call, member};
use crate::harness::TestServer;
use crate::raw::send;
use crate::server_or_skip;

/// Files that contain one of these texts, whatever they are.
pub fn files_with(directory: &Path, texts: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            found.extend(files_with(&path, texts));
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            let has = |text: &String| bytes.windows(text.len()).any(|window| window == text.as_bytes());
            found.extend(texts.iter().filter(|text| has(text)).map(|text| format!("{}: {text}", path.display())));
        }
    }
    found
}

/// A key, as it is and in forms in which it may be found as well.
pub fn forms(key: &str) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    vec![key.to_owned(), hex(key.as_bytes()), hex(key.as_bytes()).to_uppercase(), key.chars().rev().collect()]
}

/// Replaces a provider of this name.
async fn put(server: &TestServer, name: &str, body: Value) -> Value {
    let (status, answer) = server.put(&format!("/providers/{name}"), body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn secrets(server: &TestServer) -> (String, Value) {
    let (_, health) = server.get("/health").await;
    let of_secrets = |problem: &&Value| problem["part"] == "secrets";
    let problem = health["problems"].as_array().into_iter().flatten().find(of_secrets).cloned().unwrap_or_default();
    (health["parts"]["secrets"].as_str().unwrap().to_owned(), problem)
}

#[tokio::test]
async fn a_provider_is_added_changed_and_removed() {
    let server = server_or_skip!();
    let body = json!({ "name": "openai", "kind": "openai", "api_key": "sk-first-key-0001", "models": [
        { "id": "gpt-4o", "aliases": ["gpt-4"], "context_tokens": 128_000, "max_output_tokens": 16384,
          "price": { "input_per_million": 2.5, "output_per_million": 0.1 } }] });
    let create = |key: &'static str, body: Value| {
        server.request(Method::POST, "/providers").header("idempotency-key", key).json(&body).send()
    };
    let made = create("once", body.clone()).await.unwrap();
    assert_eq!(
        (made.status().as_u16(), made.headers()["location"].to_str().unwrap()),
        (201, "/api/v0/providers/openai")
    );
    let etag = made.headers()["etag"].clone();
    let made: Value = made.json().await.unwrap();
    assert_eq!(
        (&made["has_key"], &made["timeout_seconds"], &made["builtin"]),
        (&json!(true), &json!(300), &json!(false))
    );
    assert_eq!(made["models"], body["models"]);
    assert!(made["base_url"].as_str().unwrap().starts_with("https://") && made.get("api_key").is_none(), "{made}");
    // The same request again is the same provider; another one with the same key is refused, if only the key in it differs.
    assert_eq!(create("once", body.clone()).await.unwrap().json::<Value>().await.unwrap(), made);
    let mut other = body.clone();
    other["api_key"] = json!("sk-other-key-0002");
    assert_eq!(create("once", other.clone()).await.unwrap().status(), 422);
    assert_eq!(create("twice", other).await.unwrap().status(), 409, "the name is taken");
    let id = made["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/providers/{id}")).await.1, made);
    assert_eq!(server.get("/providers/openai").await.1, made);
    // Without a key in the body, it stays.
    let bare =
        json!({ "name": "openai", "kind": "openai", "base_url": "http://127.0.0.1:9/v1/", "timeout_seconds": 5 });
    let path = "/providers/openai";
    let put_if = |tag: &reqwest::header::HeaderValue| {
        server.request(Method::PUT, path).header("if-match", tag).json(&bare).send()
    };
    let changed = put_if(&etag).await.unwrap();
    assert_eq!(changed.status(), 200);
    let next = changed.headers()["etag"].clone();
    let changed: Value = changed.json().await.unwrap();
    assert_eq!((&changed["has_key"], &changed["base_url"]), (&json!(true), &json!("http://127.0.0.1:9/v1")));
    assert_eq!((&changed["models"], &changed["timeout_seconds"]), (&json!([]), &json!(5)));
    assert_eq!(put_if(&etag).await.unwrap().status(), 412);
    let unchanged = server.request(Method::GET, path).header("if-none-match", &next).send().await.unwrap();
    assert_eq!(unchanged.status(), 304);
    // Null removes it; another one is another one.
    for (key, has_key) in [(json!(null), false), (json!("sk-third-key-0003"), true)] {
        let mut body = bare.clone();
        body["api_key"] = key;
        assert_eq!(put(&server, "openai", body).await["has_key"], has_key);
    }
    let mut renamed = bare.clone();
    renamed["name"] = json!("mine");
    assert_eq!(put(&server, "openai", renamed).await["has_key"], true);
    assert_eq!(server.get("/models/mine%2Fany").await.0, 200, "its key can be decrypted under its new name");
    assert_eq!(server.get(path).await.0, 404);
    let delete = |tag: &'static str| server.request(Method::DELETE, "/providers/mine").header("if-match", tag).send();
    assert_eq!(delete("\"v1\"").await.unwrap().status(), 412);
    assert_eq!(server.delete("/providers/mine").await.0, 204);
    assert_eq!(server.delete("/providers/mine").await.0, 404);
    let (_, page) = server.get("/providers").await;
    let names: Vec<&Value> = page["items"].as_array().unwrap().iter().map(|provider| &provider["name"]).collect();
    assert_eq!(names, ["replay"]);
    let (_, audit) = server.get(&format!("/audit?target={id}")).await;
    let actions: Vec<&Value> = audit["items"].as_array().unwrap().iter().rev().map(|entry| &entry["action"]).collect();
    let updates = ["provider.update"; 4];
    assert_eq!(actions, [&["provider.create"][..], &updates, &["provider.delete"]].concat());
}

#[tokio::test]
async fn the_built_in_provider_stays_as_it_is() {
    let server = server_or_skip!();
    let (status, replay) = server.get("/providers/replay").await;
    assert_eq!((status.as_u16(), &replay["kind"], &replay["builtin"]), (200, &json!("replay"), &json!(true)));
    let body = json!({ "name": "replay", "kind": "replay" });
    send(&server, "POST", "/providers", &[], body.to_string().as_bytes()).must_be_problem(409, "name_taken", "POST");
    send(&server, "PUT", "/providers/replay", &[], body.to_string().as_bytes()).must_be_problem(
        403,
        "forbidden",
        "PUT",
    );
    send(&server, "DELETE", "/providers/replay", &[], b"").must_be_problem(403, "forbidden", "DELETE");
    assert_eq!(server.get("/providers/replay").await.1, replay);
}

#[tokio::test]
async fn what_is_wrong_with_a_provider_is_named_and_changes_nothing() {
    let server = server_or_skip!();
    let sound = json!({ "name": "a", "kind": "openai", "api_key": "sk-sound-key-0001" });
    assert_eq!(server.post("/providers", sound.clone()).await.0, 201);
    let before = server.get("/providers").await.1;
    let model = |fields: Value| json!({ "models": [{ "id": "other" }, fields] });
    let price =
        |input: f64| model(json!({ "id": "m", "price": { "input_per_million": input, "output_per_million": 1 } }));
    let many: Vec<Value> = (0..501).map(|n| json!({ "id": format!("m{n}") })).collect();
    let aliases: Vec<String> = (0..33).map(|n| format!("a{n}")).collect();
    let table = [
        (json!({ "name": "a/b" }), "name"),
        (json!({ "name": "" }), "name"),
        (json!({ "kind": "telegraph" }), "kind"),
        (json!({ "kind": null }), "kind"),
        (json!({ "surprise": 1 }), "surprise"),
        (json!({ "apikey": "sk-wrong-place-0001" }), "apikey"),
        (json!({ "base_url": "api.test" }), "base_url"),
        (json!({ "base_url": "file:///etc/passwd" }), "base_url"),
        (json!({ "base_url": "https://user:sk-wrong-place-0001@api.test" }), "base_url"),
        (json!({ "base_url": "https://api.test/v1?key=sk-wrong-place-0001" }), "base_url"),
        (json!({ "base_url": "https://api.test/#a" }), "base_url"),
        (json!({ "base_url": format!("https://api.test/{}", "x".repeat(2048)) }), "base_url"),
        (json!({ "api_key": "" }), "api_key"),
        (json!({ "api_key": "sk-wrong-place-0001 " }), "api_key"),
        (json!({ "api_key": "sk-wrong-place-0001\r\nx-header: 1" }), "api_key"),
        (json!({ "api_key": "k".repeat(4097) }), "api_key"),
        (json!({ "api_key": ["sk-wrong-place-0001"] }), "api_key"),
        (json!({ "kind": "replay" }), "api_key"),
        (json!({ "kind": "replay", "api_key": null, "base_url": "http://127.0.0.1:9" }), "base_url"),
        (json!({ "timeout_seconds": 0 }), "timeout_seconds"),
        (json!({ "timeout_seconds": 3601 }), "timeout_seconds"),
        (json!({ "models": many }), "models"),
        (model(json!({ "id": "" })), "models[1].id"),
        (model(json!({ "id": "a b" })), "models[1].id"),
        (model(json!({ "id": "other" })), "models[1].id"),
        (model(json!({ "id": "x".repeat(257) })), "models[1].id"),
        (model(json!({ "id": "m", "aliases": ["other"] })), "models[1].aliases[0]"),
        (model(json!({ "id": "m", "aliases": ["ok", "ok"] })), "models[1].aliases[1]"),
        (model(json!({ "id": "m", "aliases": aliases })), "models[1].aliases"),
        (model(json!({ "id": "m", "context_tokens": 0 })), "models[1].context_tokens"),
        (model(json!({ "id": "m", "max_output_tokens": 1_000_000_001_u64 })), "models[1].max_output_tokens"),
        (model(json!({ "id": "m", "cost": 1 })), "models[1].cost"),
        (price(-1.0), "models[1].price.input_per_million"),
        (price(0.000_000_1), "models[1].price.input_per_million"),
        (price(1e7), "models[1].price.input_per_million"),
        (price(1e300), "models[1].price.input_per_million"),
    ];
    for (wrong, field) in table {
        for (method, target) in [("POST", "/providers"), ("PUT", "/providers/a")] {
            let mut body = sound.clone();
            body.as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
            let answer = send(&server, method, target, &[], body.to_string().as_bytes());
            answer.must_be_problem(422, "invalid_input", &format!("{method} {wrong}"));
            assert_eq!(answer.fields(), [field], "{method} {wrong}: {}", answer.json());
            let text = String::from_utf8(answer.body).unwrap();
            assert!(!text.contains("sk-"), "{method} {wrong}: {text}");
        }
    }
    assert_eq!(server.get("/providers").await.1, before);
    let log = server.log();
    assert!(!log.contains("sk-"), "{log}");
}

#[tokio::test]
async fn there_are_so_many_providers_and_no_more() {
    let server = server_or_skip!();
    for n in 1..100 {
        let body = json!({ "name": format!("p{n:03}"), "kind": "openai", "models": [{ "id": format!("m{n}") }] });
        assert_eq!(server.post("/providers", body).await.0, 201);
    }
    let (status, problem) = server.post("/providers", json!({ "name": "one-more", "kind": "openai" })).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("invalid_state")), "{problem}");
    for (path, count) in [("/providers", 100), ("/models", 100)] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let (_, page) = server.get(&format!("{path}?limit=30{cursor}")).await;
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 30);
            seen.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={}", crate::raw::encoded(next));
        }
        let different: std::collections::BTreeSet<&String> = seen.iter().collect();
        assert_eq!((seen.len(), different.len()), (count, count), "{path}");
    }
}

#[tokio::test]
async fn members_see_models_and_no_providers() {
    let server = server_or_skip!();
    let token = member(&server, "alice").await;
    let body = json!({ "name": "openai", "kind": "openai", "base_url": "http://127.0.0.1:9", "api_key": "sk-members-key-0001",
                       "models": [{ "id": "gpt-4o", "aliases": ["gpt-4"] }] });
    assert_eq!(server.post("/providers", body.clone()).await.0, 201);
    let mut other = body.clone();
    other["name"] = json!("other");
    for (method, path, body) in [
        ("GET", "/providers", None),
        ("GET", "/providers/openai", None),
        ("GET", "/providers/none", None),
        ("POST", "/providers", Some(other)),
        ("PUT", "/providers/openai", Some(body)),
        ("DELETE", "/providers/openai", None),
        ("DELETE", "/providers/none", None),
    ] {
        let (status, problem) = call(&server, &token, method, path, body).await;
        assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{method} {path}");
    }
    let (status, page) = call(&server, &token, "GET", "/models", None).await;
    // Besides, there is the recording that comes with the program.
    assert_eq!((status, page["items"].as_array().unwrap().len()), (200, 2), "{page}");
    let (status, model) = call(&server, &token, "GET", "/models/gpt-4", None).await;
    let expected = json!({ "id": "openai/gpt-4o", "provider": "openai", "kind": "openai", "model": "gpt-4o", "aliases": ["gpt-4"],
                           "context_tokens": null, "max_output_tokens": null, "price": null });
    assert_eq!((status, &model), (200, &expected));
    assert_eq!(page["items"][0], expected);
    assert_eq!(reqwest::get(format!("{}/api/v0/models", server.url)).await.unwrap().status(), 401);
}

#[tokio::test]
async fn names_mean_models() {
    let server = server_or_skip!();
    for body in [
        json!({ "name": "openai", "kind": "openai", "models": [{ "id": "gpt-4o", "aliases": ["gpt-4"] }, { "id": "v/small" }] }),
        json!({ "name": "other", "kind": "anthropic", "models": [{ "id": "gpt-4o" }, { "id": "claude", "aliases": ["smart"] }] }),
        json!({ "name": "local", "kind": "openai", "base_url": "http://127.0.0.1:9/v1" }),
        json!({ "name": "tape", "kind": "replay", "models": [{ "id": "demo", "aliases": ["cheap"] }] }),
    ] {
        assert_eq!(server.post("/providers", body).await.0, 201);
    }
    let recordings = server.data_dir().join("recordings");
    fs::create_dir(&recordings).unwrap();
    fs::write(recordings.join("demo.jsonl"), "").unwrap();
    fs::write(server.data_dir().join("outside.jsonl"), "").unwrap();
    for (name, expected) in [
        ("gpt-4", Ok("openai/gpt-4o")),
        ("smart", Ok("other/claude")),
        ("other/gpt-4o", Ok("other/gpt-4o")),
        ("openai/gpt-4", Ok("openai/gpt-4o")),
        ("v/small", Ok("openai/v/small")),
        ("local/qwen:7b", Ok("local/qwen:7b")),
        ("replay/demo", Ok("replay/demo")),
        ("cheap", Ok("tape/demo")),
        ("tape/demo", Ok("tape/demo")),
        ("gpt-4o", Err((409, "ambiguous_name"))),
        ("none", Err((404, "not_found"))),
        ("openai/none", Err((404, "not_found"))),
        ("tape/other", Err((404, "not_found"))),
        ("replay/none", Err((404, "not_found"))),
        ("replay/../outside", Err((404, "not_found"))),
        ("replay/demo.jsonl", Err((404, "not_found"))),
        ("replay/", Err((404, "not_found"))),
    ] {
        let answer = send(&server, "GET", &format!("/models/{}", crate::raw::encoded(name)), &[], b"");
        match expected {
            Ok(id) => assert_eq!((answer.status, &answer.json()["id"]), (200, &json!(id)), "{name}"),
            Err((status, code)) => answer.must_be_problem(status, code, name),
        }
    }
    let (_, page) = server.get("/models").await;
    let ids: Vec<&Value> = page["items"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(
        ids,
        [
            "openai/gpt-4o",
            "openai/v/small",
            "other/claude",
            "other/gpt-4o",
            "replay/demo",
            "replay/fix-the-tests",
            "tape/demo"
        ]
    );
    // What is changed counts for the very next question.
    for n in 0..20 {
        let models = json!([{ "id": format!("m{n}"), "aliases": ["newest"] }]);
        put(&server, "local", json!({ "name": "local", "kind": "openai", "models": models })).await;
        assert_eq!(server.get("/models/newest").await.1["model"], format!("m{n}"));
    }
}

#[tokio::test]
async fn a_key_is_nowhere_but_in_its_encrypted_form() {
    let mut server = server_or_skip!();
    let (first, second) = ("sk-known-key-4f1c88a0d2", "sk-other-key-9b77e3c1f5");
    let texts: Vec<String> = [first, second].into_iter().flat_map(forms).collect();
    let token = member(&server, "alice").await;
    let session = server.session(json!({ "name": "s" })).await;
    let body = |key: &str| json!({ "name": "p", "kind": "openai", "api_key": key, "models": [{ "id": "m" }] });
    let made = server.request(Method::POST, "/providers").header("idempotency-key", "k").json(&body(first));
    let mut answers = vec![made.send().await.unwrap().text().await.unwrap()];
    answers.push(server.put("/providers/p", body(second)).await.1.to_string());
    // What fails does not tell it either.
    for (method, path, token) in [
        ("POST", "/providers", server.token.as_str()),
        ("PUT", "/providers/none", server.token.as_str()),
        ("POST", "/providers", token.as_str()),
        ("PUT", "/providers/p", token.as_str()),
        ("POST", "/providers", "raworc_unknown"),
        ("POST", "/agents", server.token.as_str()),
        ("PATCH", "/providers/p", server.token.as_str()),
    ] {
        let (status, answer) = call(&server, token, method, path, Some(body(first))).await;
        assert!(status >= 400, "{method} {path}");
        answers.push(answer.to_string());
    }
    server.output(&session, "env; cat /proc/self/environ; true").await;
    answers.push(format!("{:?}", server.events(&session).await));
    answers.push(format!("{:?}", server.messages(&session).await));
    for path in [
        "/providers",
        "/providers/p",
        "/models",
        "/models/m",
        "/audit?limit=500",
        "/health",
        "/metrics",
        "/system/loops",
    ] {
        for token in [&server.token, &token] {
            let answer = server.request_as(token, Method::GET, path).send().await.unwrap();
            answers.push(answer.text().await.unwrap());
        }
    }
    for answer in &answers {
        assert!(!texts.iter().any(|text| answer.contains(text)), "{answer}");
    }
    assert_eq!(files_with(&server.data_dir(), &texts), [""; 0]);
    assert!(server.data_dir().join("raworc.db-wal").exists());
    server.stop();
    assert_eq!(files_with(&server.data_dir(), &texts), [""; 0]);
    assert!(!texts.iter().any(|text| server.log().contains(text)));
    let key_file = server.data_dir().join("secrets.key");
    assert_eq!(fs::metadata(&key_file).unwrap().permissions().mode() & 0o7777, 0o600);
    // And that the search finds what is there.
    assert_ne!(files_with(&server.data_dir(), &["provider.create".to_owned()]), [""; 0]);
    server.start_again();
    assert_eq!(server.get("/models/m").await.0, 200);
    let database = database(&server);
    let stored: String =
        database.query_row("SELECT api_key FROM providers WHERE name = 'p'", [], |row| row.get(0)).unwrap();
    assert!(stored.starts_with("v1:"), "{stored}");
}

pub fn database(server: &TestServer) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(server.data_dir().join("raworc.db")).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    connection
}

#[tokio::test]
async fn a_key_file_that_is_lost_is_said_and_the_rest_goes_on() {
    let mut server = server_or_skip!();
    let key_file = server.data_dir().join("secrets.key");
    assert!(!key_file.exists(), "it is made when it is needed");
    assert_eq!(secrets(&server).await.0, "ok");
    let keyless =
        json!({ "name": "local", "kind": "openai", "base_url": "http://127.0.0.1:9", "models": [{ "id": "free" }] });
    assert_eq!(server.post("/providers", keyless).await.0, 201);
    assert!(!key_file.exists());
    let body = json!({ "name": "p", "kind": "openai", "api_key": "sk-p-key-0001", "models": [{ "id": "m" }] });
    assert_eq!(server.post("/providers", body.clone()).await.0, 201);
    let right = fs::read_to_string(&key_file).unwrap();
    let wrong = format!("{}\n", "ab".repeat(32));
    for (content, word, said) in [
        (None, "key_file_unusable", "is missing"),
        (Some("nonsense"), "key_file_unusable", "is no key file"),
        (Some(""), "key_file_unusable", "is no key file"),
        (Some(wrong.as_str()), "undecryptable", "another key"),
    ] {
        server.stop();
        match content {
            Some(content) => fs::write(&key_file, content).unwrap(),
            None => fs::remove_file(&key_file).unwrap(),
        }
        server.start_again();
        let (told, problem) = secrets(&server).await;
        let text = problem["problem"].as_str().unwrap().to_owned();
        assert!(told == word && text.contains(said) && text.contains("p"), "{content:?}: {told} {problem}");
        assert!(problem["remedy"].as_str().unwrap().contains("key_file_unusable.md"), "{problem}");
        let doctor = String::from_utf8(server.cli(&["doctor"]).stdout).unwrap();
        assert!(doctor.contains("secrets: "), "{doctor}");
        let (status, problem) = server.get("/models/m").await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("key_file_unusable")), "{content:?}");
        // Everything else works, and nothing replaces the file.
        assert_eq!(server.get("/models/free").await.0, 200);
        assert_eq!(server.get("/models").await.1["items"].as_array().unwrap().len(), 3);
        assert_eq!(server.get("/providers/p").await.1["has_key"], true);
        let mut another = body.clone();
        another["name"] = json!("another");
        another["models"] = json!([]);
        let (status, problem) = server.post("/providers", another).await;
        if word == "key_file_unusable" {
            assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("key_file_unusable")), "{content:?}");
        } else {
            // With another key than the rest.
            assert_eq!(status, 201, "{problem}");
            assert_eq!(server.get("/models/another%2Fx").await.0, 200);
            assert_eq!(server.delete("/providers/another").await.0, 204);
        }
        assert_eq!(fs::read_to_string(&key_file).ok().as_deref(), content);
        // Put back, it is used again, without a restart.
        fs::write(&key_file, &right).unwrap();
        assert_eq!(secrets(&server).await.0, "ok", "{content:?}");
        assert_eq!(server.get("/models/m").await.0, 200, "{content:?}");
    }
    // Where there is no copy: the keys are given anew.
    fs::remove_file(&key_file).unwrap();
    assert_eq!(secrets(&server).await.0, "key_file_unusable", "also while it runs");
    let mut without = body.clone();
    without["api_key"] = json!(null);
    put(&server, "p", without).await;
    put(&server, "p", body).await;
    assert_ne!(fs::read_to_string(&key_file).unwrap(), right);
    assert_eq!(secrets(&server).await.0, "ok");
    assert_eq!(server.get("/models/m").await.0, 200);
}

#[tokio::test]
async fn keys_are_encrypted_anew_and_cannot_be_exchanged() {
    let server = server_or_skip!();
    for name in ["a", "b"] {
        let body = json!({ "name": name, "kind": "openai", "api_key": format!("sk-{name}-key-0001") });
        assert_eq!(server.post("/providers", body).await.0, 201);
    }
    let (database, key_file) = (database(&server), server.data_dir().join("secrets.key"));
    let stored = |name: &str| -> String {
        database.query_row("SELECT api_key FROM providers WHERE name = ?1", [name], |row| row.get(0)).unwrap()
    };
    let set = |name: &str, value: &str| {
        database.execute("UPDATE providers SET api_key = ?1 WHERE name = ?2", [value, name]).unwrap();
    };
    // A new key above the old one: what is stored is encrypted with the new one, to which it stays the same version.
    let (tag, before) = (server.request(Method::GET, "/providers/a").send().await.unwrap(), stored("a"));
    let tag = tag.headers()["etag"].clone();
    let (old, new) = (fs::read_to_string(&key_file).unwrap(), "cd".repeat(32));
    fs::write(&key_file, format!("{new}\n{old}")).unwrap();
    assert_eq!(secrets(&server).await.0, "ok");
    assert_ne!(stored("a"), before);
    assert_eq!(server.request(Method::GET, "/providers/a").send().await.unwrap().headers()["etag"], tag);
    fs::write(&key_file, &new).unwrap();
    assert_eq!(secrets(&server).await.0, "ok");
    assert_eq!(server.get("/models/a%2Fx").await.0, 200);
    // Whoever can write to the database cannot have one provider sent the key of another.
    let (a, b) = (stored("a"), stored("b"));
    set("a", &b);
    assert_eq!(secrets(&server).await.0, "undecryptable");
    assert_eq!(server.get("/models/a%2Fx").await.1["code"], "key_file_unusable");
    assert_eq!(server.get("/models/b%2Fx").await.0, 200);
    set("a", &a);
    assert_eq!(secrets(&server).await.0, "ok");
    assert_eq!(server.get("/models/a%2Fx").await.0, 200);
}

#[tokio::test]
async fn the_command_line_needs_a_name_and_a_key() {
    let server = server_or_skip!();
    let key = "sk-command-line-0001";
    let added = server.shell(&format!("printf '{key}\\n' | raworc provider add openai --key-stdin"));
    assert!(added.status.success(), "{added:?}");
    assert_eq!(String::from_utf8_lossy(&added.stdout), "Added provider openai\n");
    let (_, provider) = server.get("/providers/openai").await;
    assert_eq!((&provider["kind"], &provider["has_key"]), (&json!("openai"), &json!(true)));
    assert_eq!(server.get("/models/gpt-4").await.1["provider"], "openai");
    let json_of = |arguments: &[&str]| -> Value {
        let output = server.cli(&[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    for (name, kind, has_models) in
        [("anthropic", "anthropic", true), ("gemini", "gemini", true), ("ollama", "openai", false)]
    {
        let made = json_of(&["provider", "add", name]);
        assert_eq!((&made["kind"], &made["has_key"]), (&json!(kind), &json!(false)));
        assert_eq!(made["models"].as_array().unwrap().is_empty(), !has_models, "{made}");
    }
    let work = [
        "--kind",
        "openai",
        "--base-url",
        "http://127.0.0.1:9/v1",
        "--model",
        "m=x,y",
        "--price",
        "m=2.5,10",
        "--timeout",
        "1m",
    ];
    let work = json_of(&[&["provider", "add", "work"], &work[..]].concat());
    assert_eq!(
        work["models"],
        json!([{ "id": "m", "aliases": ["x", "y"], "price": { "input_per_million": 2.5, "output_per_million": 10.0 } }])
    );
    assert_eq!(work["timeout_seconds"], 60);
    let listed = json_of(&["provider", "list"]);
    let names: Vec<&Value> = listed["items"].as_array().unwrap().iter().map(|provider| &provider["name"]).collect();
    assert_eq!(names, ["anthropic", "gemini", "ollama", "openai", "replay", "work"]);
    assert_eq!(json_of(&["model", "get", "y"])["id"], "work/m");
    assert!(json_of(&["model", "list", "--all"])["items"].as_array().unwrap().len() > 10);
    for arguments in
        [&["provider", "list"][..], &["provider", "get", "openai"], &["model", "list"], &["model", "get", "work/m"]]
    {
        let output = server.cli(arguments);
        assert!(output.status.success() && !output.stdout.is_empty(), "{arguments:?}: {output:?}");
    }
    let updated =
        json_of(&["provider", "update", "work", "--add-model", "n=z", "--remove-model", "m", "--name", "home"]);
    assert_eq!((&updated["name"], &updated["models"]), (&json!("home"), &json!([{ "id": "n", "aliases": ["z"] }])));
    let changed = server.shell("printf sk-command-line-0002 | raworc provider update openai --key-stdin");
    assert!(changed.status.success(), "{changed:?}");
    assert_eq!(json_of(&["provider", "update", "openai", "--no-key"])["has_key"], false);
    assert!(server.cli(&["provider", "delete", "home"]).status.success());
    // A key is no argument, nor is it repeated; and nothing is made of a name alone, or of an empty key.
    for arguments in [
        &["provider", "add", "x", "--kind", "openai", "--key", key][..],
        &["provider", "update", "openai", "--key", key],
        &["provider", "update", "openai", &format!("--key={key}")],
        &["provider", "update", "openai", "--key"],
        &["provider", "add", "x"],
        &["provider", "add", "x", "--kind", "openai", "--key-stdin"],
        &["provider", "delete", "replay"],
        &["provider", "get", "x"],
        &["model", "get", "none"],
    ] {
        let output = server.cli(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains(key), "{arguments:?}: {text}");
        assert!(
            !arguments.iter().any(|argument| argument.starts_with("--key=")) || text.contains("--key-stdin"),
            "{text}"
        );
    }
}
