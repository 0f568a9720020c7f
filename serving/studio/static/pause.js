// The question of a paused run, and a form for its answer.

import { h, setText } from "/studio/dom.js";

/** `answer(text)` sends the answer and may throw. */
export function pauseForm(agent, answer) {
  const field = h("textarea", { rows: "3", id: `answer-${agent.turn}` });
  const trouble = h("p", { class: "trouble", role: "alert" });
  const button = h("button", { class: "main", type: "submit" }, "Answer");
  const send = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await answer(field.value);
    } catch (error) {
      setText(trouble, error.message);
      button.disabled = false;
    }
  };
  const label = h("label", { htmlFor: field.id }, `${agent.name} asks: `, h("span", { class: "question" }, agent.question));
  return h("form", { class: "question-form", onsubmit: send }, label, field, h("p", { class: "row" }, button), trouble);
}
