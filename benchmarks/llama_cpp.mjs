// Greedy tokens by llama.cpp, through node-llama-cpp, for llama_cpp.py.
//
// Reads {"model", "prompt": [token, ...], "count", "adapters": [[{"filePath", "scale"}, ...], ...]}
// from the file that is named, and prints a list of tokens for each list of adapters.
import {readFileSync} from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const asked = JSON.parse(readFileSync(process.argv[2], "utf8"));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1});
const model = await llama.loadModel({modelPath: asked.model});
const found = [];
for (const adapters of asked.adapters) {
  const context = await model.createContext({contextSize: 512, lora: {adapters}});
  const tokens = [];
  for await (const token of context.getSequence().evaluate(asked.prompt, {temperature: 0})) {
    tokens.push(token);
    if (tokens.length === asked.count) break;
  }
  found.push(tokens);
  await context.dispose();
}
console.log(JSON.stringify(found));
process.exit(0);
