"""With a client made from the OpenAPI document alone, a program makes an automation, reads it, and gets its errors."""

import sys

from tributary_client import AuthenticatedClient
from tributary_client.api.automations import get_api_automations_id, post_api_automations
from tributary_client.models import (
    ActionAddTag,
    ActionAddTagDo,
    ActionEmail,
    ActionEmailDo,
    AutomationAnswer,
    Definition,
    Error,
    Span,
    StepBranch,
    StepBranchDo,
    StepWait,
    StepWaitDo,
    TriggerEvent,
    TriggerEventOn,
)

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)
definition = Definition(
    name="Welcome, from Python",
    trigger=TriggerEvent(on=TriggerEventOn.EVENT, event="Signed Up"),
    steps=[
        StepWait(do=StepWaitDo.WAIT, for_=Span(hours=1)),
        ActionEmail(do=ActionEmailDo.EMAIL, subject="Hello", text="Welcome", marketing=False),
        StepBranch(
            do=StepBranchDo.BRANCH,
            condition="orders.count > 0",
            then=[ActionAddTag(do=ActionAddTagDo.ADD_TAG, tag="buyer")],
        ),
    ],
)
made = post_api_automations.sync(client=client, body=definition)
assert isinstance(made, AutomationAnswer), f"not made: {made}"
read = get_api_automations_id.sync(made.id, client=client)
assert isinstance(read, AutomationAnswer), f"not read: {read}"
assert len(read.definition.steps) == 3, f"not as it was made: {read}"
wrong = get_api_automations_id.sync("nobody", client=client)
assert isinstance(wrong, Error) and wrong.code == "not_found", f"not refused: {wrong}"
print(f"Python: made automation {made.id}")
