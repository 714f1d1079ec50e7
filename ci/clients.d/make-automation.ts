// With types made from the OpenAPI document alone, a program makes an automation, reads it, and gets its errors.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const [url, key] = process.argv.slice(2);
if (!url || !key) throw new Error("make-automation URL SECRET_KEY");

const definition: components["schemas"]["Definition"] = {
  name: "Welcome, from TypeScript",
  trigger: { on: "event", event: "Signed Up" },
  steps: [
    { do: "wait", for: { hours: 1 } },
    { do: "email", subject: "Hello", text: "Welcome", marketing: false },
    {
      do: "branch",
      condition: "orders.count > 0",
      then: [{ do: "add_tag", tag: "buyer" }],
      otherwise: [{ do: "webhook", url: "https://example.com/hook" }, { do: "exit" }],
    },
  ],
};

const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });
const made = await client.POST("/api/automations", { body: definition });
if (!made.data) throw new Error(`not made: ${JSON.stringify(made.error)}`);
const id: string = made.data.id;
const read = await client.GET("/api/automations/{id}", { params: { path: { id } } });
if (read.data?.definition.steps.length !== 3) throw new Error(`not as it was made: ${JSON.stringify(read.data)}`);
const wrong = await client.GET("/api/automations/{id}", { params: { path: { id: "nobody" } } });
if (wrong.error?.code !== "not_found") throw new Error(`not refused: ${JSON.stringify(wrong)}`);
console.log(`TypeScript: made automation ${id}`);
