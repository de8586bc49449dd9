// A server on socket.io, in its own protocol and with its own rooms: `node socketio_server.mjs PORT`.
import { createServer } from 'node:http';
import { Server } from 'socket.io';

const HEARTBEAT_MS = 30000;
const BACKLOG = 4096;
const http = createServer();
const io = new Server(http, {
  transports: ['websocket'],
  serveClient: false,
  perMessageDeflate: false,
  httpCompression: false,
  pingInterval: HEARTBEAT_MS,
});

io.on('connection', (socket) => {
  socket.on('join', (channel, acknowledge) => {
    socket.join(channel);
    acknowledge();
  });
  socket.on('publish', (channel, data, acknowledge) => {
    acknowledge();
    io.to(channel).emit('message', channel, data);
  });
});
http.listen(Number(process.argv[2]), '127.0.0.1', BACKLOG, () => console.log('ready'));
