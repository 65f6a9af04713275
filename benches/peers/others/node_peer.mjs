// Node's own HTTP server: the work goes on after `res.end`.
import http from "node:http";

const PAGE = Buffer.alloc(1024 * 1024, "x");

const server = http.createServer((req, res) => {
  switch (req.url) {
    case "/respond":
      res.end("hello", () => setTimeout(() => {}, 100));
      break;
    case "/park":
      res.end("hello", () => setTimeout(() => {}, 3_600_000));
      break;
    case "/upload":
      res.writeHead(200, { connection: "close", "content-length": PAGE.length });
      res.end(PAGE);
      break;
    default:
      res.writeHead(404).end();
  }
});
server.keepAliveTimeout = 0;
server.listen({ port: 0, host: "127.0.0.1", backlog: 2048 }, () => {
  console.log(`127.0.0.1:${server.address().port}`);
});
