// A server on ws that speaks what the floor program speaks: `node ws_server.mjs PORT`.
import { Packr } from 'msgpackr';
import { WebSocketServer } from 'ws';

const [HELLO, WELCOME, REPLY, PING, PONG, JOIN, PUBLISH, MESSAGE, FIN, FIN_ACK] = [0, 1, 2, 4, 5, 6, 8, 9, 14, 15];
const BACKLOG = 4096;
const packr = new Packr({ useRecords: false });
const groups = new Map(); // name -> { members: Set of sockets, offset }
const binary = { binary: true };
let sessions = 0;

function groupNamed(name) {
  let group = groups.get(name);
  if (!group) groups.set(name, (group = { members: new Set(), offset: 0 }));
  return group;
}

function join(socket, id, channel) {
  const group = groupNamed(channel);
  group.members.add(socket);
  socket.joined.add(group);
  socket.send(packr.pack([REPLY, id, { epoch: 1, offset: group.offset }]), binary);
}

function publish(socket, id, channel, data) {
  const group = groupNamed(channel);
  const offset = ++group.offset;
  socket.send(packr.pack([REPLY, id, { epoch: 1, offset }]), binary);
  const body = packr.pack([MESSAGE, channel, offset, data, { from: 'swarm-0', time: Date.now(), epoch: 1 }]);
  for (const member of group.members) member.send(body, binary);
}

function act(socket, frame) {
  const [kind, id, ...rest] = frame;
  if (kind === PUBLISH) publish(socket, id, rest[0], rest[1]);
  else if (kind === JOIN) join(socket, id, rest[0]);
  else if (kind === HELLO) socket.send(packr.pack([WELCOME, id, { session: String(++sessions), ping: 30 }]), binary);
  else if (kind === PING) socket.send(packr.pack([PONG, id, rest[0]]), binary);
  else if (kind === FIN) socket.send(packr.pack([FIN_ACK]), binary);
}

const options = { host: '127.0.0.1', port: Number(process.argv[2]), path: '/ws', backlog: BACKLOG, perMessageDeflate: false };
const server = new WebSocketServer(options, () => console.log('ready'));
server.on('connection', (socket) => {
  socket.joined = new Set();
  socket.on('message', (body) => act(socket, packr.unpack(body)));
  socket.on('close', () => {
    for (const group of socket.joined) group.members.delete(socket);
  });
  socket.on('error', () => socket.terminate());
});
