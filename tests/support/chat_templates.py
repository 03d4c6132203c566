"""Chat templates in the manner of the common families, written for these tests."""

TURNS_WITH_TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {{- 'You may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if loop.first and message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<result id=' + message.tool_call_id + '>' }}
        {{- message.content + '</result><|im_end|>\\n' }}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson(indent=None) + '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
"""Turns between marks; tools as lines of JSON, calls between tags; a switch for thinking."""

HEADERS_WITH_DATE = """{{ bos_token }}
{%- set ns = namespace(system='', rest=messages) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set ns.rest = messages[1:] %}
{%- endif %}
{{- '<|start|>system<|end|>\\n\\n' }}
{%- if tools is defined and tools is not none %}{{- 'Environment: ipython\\n' }}{% endif %}
{{- 'Today is ' + strftime_now('%d %B %Y') + '\\n' + ns.system + '<|eot|>' }}
{%- for message in ns.rest %}
    {%- if tools and loop.first and message['role'] == 'user' %}
        {{- '<|start|>user<|end|>\\n\\nCall one as {"name": its name, "parameters": its arguments}.\\n\\n' }}
        {%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{% endfor %}
        {{- (message['content'] | trim) ~ '<|eot|>' }}
    {%- elif message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('One call in a turn') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant<|end|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson + '}<|eot|>' }}
    {%- elif message['role'] in ['tool', 'ipython'] %}
        {{- '<|start|>ipython<|end|>\\n\\n' ~ (message.content | tojson) ~ '<|eot|>' }}
    {%- else %}
        {{- '<|start|>' ~ message['role'] ~ '<|end|>\\n\\n' ~ (message['content'] | trim) ~ '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{% endif %}
"""
"""Headers before each turn, contents trimmed, the date in the system turn; calls in place of an answer."""

BRACKETS_IN_TURNS = """
{%- if messages[0].role == 'system' %}
    {%- set opening = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}
    {%- set opening = '' %}{% set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- set ns = namespace(place=0) %}
{%- for message in turns %}
    {%- if message.role != 'tool' and not message.tool_calls %}
        {%- if (message.role == 'user') != (ns.place % 2 == 0) %}
            {{- raise_exception('Roles must alternate: user, assistant, user, ...') }}
        {%- endif %}
        {%- set ns.place = ns.place + 1 %}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- if tools and message == (turns | selectattr('role', 'equalto', 'user') | list)[-1] %}
            {{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (opening if loop.first else '') + message.content + ' [/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- if call.id | length != 9 %}{{- raise_exception('An id has nine characters') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (', ' if not loop.last else ']') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]{"content": ' + (message.content | tojson) + ', "call_id": "' }}
        {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {%- generation %}{{- ' ' + message.content + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
"""Brackets around what the user says and around calls, and an error where turns do not alternate."""

THOUGHTS_KEPT_APART = """
{%- macro turn(message, is_last) %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
    {{- '<' + message.role + '>' }}
    {%- if is_last and message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think>' }}{% endif %}
    {{- content + '</' + message.role + '>' }}
{%- endmacro %}
{%- for message in messages %}{{- turn(message, loop.last) }}{% endfor %}
{%- if add_generation_prompt %}{{- '<assistant><think>' }}{% endif %}
"""
"""A macro, and reasoning that is dropped from all but the last turn."""

ARGUMENTS_AS_TEXT = """
{%- if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_open=false) %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' and message['content'] is none %}
        {%- for call in message['tool_calls'] %}
            {{- '<|Assistant|>' if loop.first else '\\n' }}
            {{- '<|call|>' + call['type'] + '<|sep|>' + call['function']['name'] + '\\n```json\\n' }}
            {{- call['function']['arguments'] + '\\n```<|end call|>' }}
        {%- endfor %}
        {{- '<|end|>' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ('' if ns.is_open else '<|Assistant|>') + message['content'].split('</think>')[-1] + '<|end|>' }}
        {%- set ns.is_open = false %}
    {%- elif message['role'] == 'tool' %}
        {{- '<|output|>' + message['content'] + '<|end output|>' }}
        {%- set ns.is_open = true %}
    {%- else %}
        {{- '<|' + message['role'] + '|>' + message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.is_open %}{{- '<|Assistant|><think>\\n' }}{% endif %}
"""
"""Calls in messages whose content is none, with arguments that are text already; no place for tools."""

MARKS_AND_FENCES = """{{ tools | map(attribute='function') | tojson }}
{%- for message in messages %}{{ message.content or '' }}
    {%- for call in message.tool_calls or [] %}
        {{- '<｜tool▁calls▁begin｜>' if loop.first else '\\n' }}
        {{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call.function.name }}
        {{- '\\n```json\\n' + call.function.arguments + '\\n```<｜tool▁call▁end｜>' }}
        {{- '<｜tool▁calls▁end｜>' if loop.last }}
    {%- endfor %}
{%- endfor %}"""
"""Calls between marks, their arguments as text in a fence."""

TOOLS_TAKEN_FOR_GRANTED = """
{%- macro described(tool) %}{{ tool.name + ': ' + tool.description }}{% endmacro %}
{{- bos_token + '<|im_start|>system\\nYou may call <tools>' }}
{%- for tool in tools %}{{- '\\n' + described(tool.function) }}{% endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role }}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
    {%- else %}{{- '\\n' + message.content }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
"""For conversations with tools alone: it goes through them without asking whether there are any."""

ALL = {
    "turns": TURNS_WITH_TOOLS,
    "headers": HEADERS_WITH_DATE,
    "brackets": BRACKETS_IN_TURNS,
    "thoughts": THOUGHTS_KEPT_APART,
}
