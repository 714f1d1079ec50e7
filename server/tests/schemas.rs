//! What the OpenAPI document says of answers: each has a type, and is what its type says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use support::{On, TestApp, answer};

/// The document, as it is served.
struct Document(Value);

impl Document {
    async fn of(app: &TestApp) -> Self {
        Self(answer(app.http.get(format!("{}/openapi.json", app.url))).await.1)
    }

    /// A schema, or what it names.
    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(name) => self.resolved(self.0.pointer(name.trim_start_matches('#')).expect(name)),
            None => schema,
        }
    }

    /// What is wrong with a value by a schema: `None` where it is right.
    fn fault(&self, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let schema = self.resolved(schema);
        for (key, all) in [("oneOf", false), ("anyOf", false), ("allOf", true)] {
            let Some(parts) = schema[key].as_array() else { continue };
            if all {
                // The fields of all parts together.
                return self.fault(&self.merged(parts), value, at);
            }
            let faults: Vec<String> = parts.iter().filter_map(|part| self.fault(part, value, at)).collect();
            return (faults.len() == parts.len()).then(|| format!("{at} is none of: {}", faults.join("; ")));
        }
        if let Some(allowed) = schema["enum"].as_array() {
            return (!allowed.contains(value)).then(|| format!("{at} is {value}, and may be {allowed:?}"));
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let is = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = types.contains(&is) || (is == "integer" && types.contains(&"number"));
        if !fits {
            return Some(format!("{at} is {value}, and should be of {types:?}"));
        }
        match value {
            Value::Array(items) => {
                items.iter().find_map(|item| self.fault(&schema["items"], item, &format!("{at}[]")))
            }
            Value::Object(fields) => self.fields_fault(schema, fields, at),
            _ => None,
        }
    }

    fn fields_fault(
        &self,
        schema: &Value,
        fields: &serde_json::Map<String, Value>,
        at: &str,
    ) -> Option<String> {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for name in required {
            if !fields.contains_key(name) {
                return Some(format!("{at} has no {name}"));
            }
        }
        let known = schema["properties"].as_object();
        fields.iter().find_map(|(name, value)| {
            let at = format!("{at}.{name}");
            match (known.and_then(|known| known.get(name)), &schema["additionalProperties"]) {
                (Some(schema), _) => self.fault(schema, value, &at),
                (None, Value::Null) => Some(format!("{at} is not documented")),
                (None, others) => self.fault(others, value, &at),
            }
        })
    }

    fn merged(&self, parts: &[Value]) -> Value {
        let (mut properties, mut required) = (serde_json::Map::new(), Vec::new());
        for part in parts {
            let part = self.resolved(part);
            properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
            required.extend(part["required"].as_array().cloned().unwrap_or_default());
        }
        json!({"type": "object", "properties": properties, "required": required})
    }

    /// The schema of what a route answers with that status.
    fn answers(&self, method: &Method, path: &str, status: u16) -> &Value {
        let operation = &self.0["paths"][path][method.as_str().to_lowercase()];
        let schema = &operation["responses"][status.to_string()]["content"]["application/json"]["schema"];
        assert!(!schema.is_null(), "{method} {path} documents no {status}: {operation}");
        schema
    }

    /// The places of a schema, and of all that it names, where it says no more than that something is an object.
    fn bare(&self, schema: &Value, at: &str, seen: &mut BTreeSet<String>, found: &mut Vec<String>) {
        if let Some(name) = schema["$ref"].as_str()
            && !seen.insert(name.to_owned())
        {
            return;
        }
        let schema = self.resolved(schema);
        let is_object = schema["type"] == "object";
        if is_object && schema.get("properties").is_none() && schema.get("additionalProperties").is_none() {
            found.push(at.to_owned());
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            self.bare(field, &format!("{at}.{name}"), seen, found);
        }
        let parts =
            ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
        for part in parts.chain(schema.get("items")) {
            self.bare(part, at, seen, found);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_a_type() {
    let app = TestApp::start(On::Embedded).await;
    let document = Document::of(&app).await;
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for (path, operations) in document.0["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().into_iter().flatten() {
                for content in
                    response["content"].as_object().into_iter().flatten().map(|(_, content)| content)
                {
                    document.bare(
                        &content["schema"],
                        &format!("{method} {path} {status}"),
                        &mut seen,
                        &mut found,
                    );
                }
            }
        }
    }
    assert!(found.is_empty(), "only an object: {found:#?}");
    assert!(seen.len() > 50, "the types were looked at: {}", seen.len());
    app.stop().await;
}

#[test]
fn a_value_that_is_not_as_documented_is_noticed() {
    let document = Document(json!({}));
    let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "array", "items": {"type": "string"}}}});
    let fault = |value| document.fault(&schema, &value, "it");
    assert_eq!(fault(json!({"a": null, "b": ["x"]})), None);
    for wrong in [json!({}), json!({"a": "x"}), json!({"a": 1, "c": 2}), json!({"a": 1, "b": [1]}), json!([])]
    {
        assert!(fault(wrong.clone()).is_some(), "{wrong}");
    }
}

/// A brand that has something of everything.
async fn filled(app: &TestApp) -> String {
    let send = async |body: Value| {
        let (status, answer) = answer(app.post("/v1/batch", body.to_string())).await;
        assert_eq!(status, 200, "{answer}");
    };
    send(json!({"batch": [
        {"type": "identify", "userId": "ada", "traits": {"email": "ada@example.com", "emailMarketingConsent": true, "plan": "gold"}},
        {"type": "track", "userId": "ada", "event": "Seen", "properties": {"sku": "mug"}},
        {"type": "identify", "userId": "bob", "anonymousId": "b1", "traits": {"email": "bob@example.com"}},
        {"type": "track", "userId": "bad", "messageId": "bad"},
    ]}))
    .await;
    let client = app.client();
    let order = json!({"id": 1, "email": "ada@example.com", "total_price": "5.00", "currency": "EUR", "customer": {"id": 7, "email": "ada@example.com"},
        "line_items": [{"product_id": 1, "title": "Mug", "quantity": 1, "price": "5.00"}]});
    let (status, found) =
        answer(client.webhook(client.http(), "orders/create", "o1", order.to_string())).await;
    assert_eq!(status, 200, "{found}");
    app.drain().await;
    let (status, found) = answer(app.get("/api/customers/by/email/ada@example.com/360")).await;
    assert_eq!(status, 200, "{found}");
    found["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_what_their_types_say() {
    let app = TestApp::start(On::Embedded).await;
    let document = Document::of(&app).await;
    let check = async |method: Method, route: &str, path: &str, body: Option<Value>| {
        let request =
            app.http.request(method.clone(), format!("{}{path}", app.url)).bearer_auth(&app.secret_key);
        let request = body.iter().fold(request, |request, body| request.body(body.to_string()));
        let (status, found) = answer(request).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {found}");
        let fault = document.fault(document.answers(&method, route, status), &found, "the answer");
        assert_eq!(fault, None, "{method} {route} answers {found}");
        found
    };
    let id = filled(&app).await;
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    let gold = json!({"expression": "traits.plan == 'gold'"});
    check(put.clone(), "/api/segments/{name}", "/api/segments/gold", Some(gold.clone())).await;
    let automation = json!({"name": "a", "trigger": {"on": "event", "event": "Seen"}, "steps": [{"do": "add_tag", "tag": "t"}]});
    let made = check(post.clone(), "/api/automations", "/api/automations", Some(automation)).await;
    let own = format!("/api/automations/{}", made["id"].as_str().unwrap());
    check(post.clone(), "/api/automations/{id}/activate", &format!("{own}/activate"), None).await;
    let again = json!({"batch": [{"type": "track", "userId": "ada", "event": "Seen", "messageId": "again"}]});
    assert_eq!(answer(app.post("/v1/batch", again.to_string())).await.0, 200);
    app.drain().await;
    let customer = format!("/api/customers/{id}");
    for (route, path) in [
        ("/api/customers", "/api/customers?limit=1".to_owned()),
        ("/api/customers/{id}/360", format!("{customer}/360")),
        ("/api/customers/{id}/timeline", format!("{customer}/timeline")),
        ("/api/customers/{id}/identity", format!("{customer}/identity")),
        ("/api/customers/{id}/export", format!("{customer}/export")),
        ("/api/customers/{id}/segments", format!("{customer}/segments")),
        ("/api/segments", "/api/segments".to_owned()),
        ("/api/segments/{name}", "/api/segments/gold".to_owned()),
        ("/api/segments/{name}/customers", "/api/segments/gold/customers".to_owned()),
        ("/api/segments/{name}/changes", "/api/segments/gold/changes".to_owned()),
        ("/api/automations", "/api/automations".to_owned()),
        ("/api/automations/{id}", own.clone()),
        ("/api/automations/{id}/runs", format!("{own}/runs")),
        ("/api/runs", "/api/runs".to_owned()),
        ("/api/automation-templates", "/api/automation-templates".to_owned()),
        ("/api/signing-secret", "/api/signing-secret".to_owned()),
        ("/api/queues", "/api/queues".to_owned()),
        ("/api/queues/{queue}", "/api/queues/automations".to_owned()),
        ("/api/queues/{queue}/dead", "/api/queues/events/dead".to_owned()),
        ("/api/settings", "/api/settings".to_owned()),
        ("/api/keys", "/api/keys".to_owned()),
        ("/api/refusals", "/api/refusals".to_owned()),
        ("/api/privacy/requests", "/api/privacy/requests".to_owned()),
        ("/api/privacy/audit", "/api/privacy/audit".to_owned()),
        ("/api/monitoring/stats", "/api/monitoring/stats".to_owned()),
        ("/api/monitoring/queues", "/api/monitoring/queues".to_owned()),
        ("/api/monitoring/health", "/api/monitoring/health".to_owned()),
        ("/v1/projects/{writeKey}/settings", format!("/v1/projects/{}/settings", app.write_key)),
        ("/sourceConfig", format!("/sourceConfig?writeKey={}", app.write_key)),
    ] {
        if route == "/sourceConfig" {
            let (status, found) = answer(app.http.get(format!("{}{path}", app.url))).await;
            assert_eq!(
                document.fault(document.answers(&get, route, status), &found, "the answer"),
                None,
                "{found}"
            );
            continue;
        }
        check(get.clone(), route, &path, None).await;
    }
    let letters = check(get.clone(), "/api/queues/{queue}/dead", "/api/queues/events/dead", None).await;
    let letter = format!("/api/queues/events/dead/{}", letters["letters"][0]["id"].as_str().unwrap());
    check(get, "/api/queues/{queue}/dead/{id}", &letter, None).await;
    check(post.clone(), "/api/queues/{queue}/dead/{id}/retry", &format!("{letter}/retry"), None).await;
    check(post.clone(), "/api/segment-preview", "/api/segment-preview", Some(gold)).await;
    let dry = json!({"customer": id});
    check(post.clone(), "/api/automations/{id}/dry-run", &format!("{own}/dry-run"), Some(dry)).await;
    let key = json!({"kind": "write"});
    check(post.clone(), "/api/keys", "/api/keys", Some(key)).await;
    let events = json!([{"event": "E", "userId": "u"}, {"event": "E"}]);
    check(post, "/api/events", "/api/events", Some(events)).await;
    app.stop().await;
}
