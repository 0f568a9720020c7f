// The difference of two texts, word by word.

const MOST = 4_000_000; // cells of the table: texts of about 1,000 words each

/** Return [{kind: "same" | "first" | "second", text}], or null if the texts are too long. */
export function diffWords(first, second) {
  const [a, b] = [words(first), words(second)];
  if ((a.length + 1) * (b.length + 1) > MOST) return null;
  const longest = commonLengths(a, b);
  const parts = [];
  const add = (kind, text) => (parts.at(-1)?.kind === kind ? (parts.at(-1).text += text) : parts.push({ kind, text }));
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add("same", a[i]);
      i++;
      j++;
    } else if (j === b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) add("first", a[i++]);
    else add("second", b[j++]);
  }
  return parts;
}

const words = (text) => text.match(/\s*\S+|\s+$/g) ?? [];

/** By (i, j), the length of the longest common subsequence of a[i:] and b[j:]. */
function commonLengths(a, b) {
  const table = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) table[i][j] = a[i] === b[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
  }
  return table;
}
