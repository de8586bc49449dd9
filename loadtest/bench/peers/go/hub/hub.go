// Package hub is what the peers in Go share: the subset of our protocol that the floor program speaks, without sockets.
//
// HELLO, JOIN, PUBLISH, PING and FIN are answered; a message is encoded once for all members. There are no sessions,
// rights or limits.
package hub

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tinylib/msgp/msgp"
)

const (
	hello   = 0
	welcome = 1
	reply   = 2
	ping    = 4
	pong    = 5
	join    = 6
	publish = 8
	message = 9
	fin     = 14
	finAck  = 15
)

// Member is a connection: comparable, and able to take a body.
type Member interface {
	comparable
	Send(body []byte)
}

type group[M Member] struct {
	mutex   sync.Mutex // held while a message goes out, so that all members see one order
	name    string
	offset  uint64
	members map[M]struct{}
}

// Hub holds the groups. Broadcast sends one body to all members in the way that the library likes best.
type Hub[M Member] struct {
	Broadcast func(members map[M]struct{}, body []byte)
	mutex     sync.RWMutex
	groups    map[string]*group[M]
	sessions  atomic.Uint64
}

// Joined is what a connection keeps: the groups to leave at its end. Only its own reader touches it.
type Joined[M Member] struct{ groups []*group[M] }

// New makes a hub without groups.
func New[M Member](broadcast func(map[M]struct{}, []byte)) *Hub[M] {
	return &Hub[M]{Broadcast: broadcast, groups: map[string]*group[M]{}}
}

func (h *Hub[M]) named(name []byte) *group[M] {
	h.mutex.RLock()
	found := h.groups[string(name)]
	h.mutex.RUnlock()
	if found != nil {
		return found
	}
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.groups[string(name)] == nil {
		h.groups[string(name)] = &group[M]{name: string(name), members: map[M]struct{}{}}
	}
	return h.groups[string(name)]
}

func position(id, offset uint64) []byte {
	body := msgp.AppendArrayHeader(make([]byte, 0, 64), 3)
	body = msgp.AppendUint64(msgp.AppendUint64(body, reply), id)
	body = msgp.AppendMapHeader(body, 2)
	body = msgp.AppendUint64(msgp.AppendString(body, "epoch"), 1)
	return msgp.AppendUint64(msgp.AppendString(body, "offset"), offset)
}

// Act handles one frame of a member; what is no frame is passed over.
func (h *Hub[M]) Act(member M, joined *Joined[M], body []byte) {
	_, rest, err := msgp.ReadArrayHeaderBytes(body)
	if err != nil {
		return
	}
	kind, rest, err := msgp.ReadUint64Bytes(rest)
	if err != nil {
		return
	}
	if kind == fin {
		member.Send([]byte{0x91, finAck})
		return
	}
	id, rest, err := msgp.ReadUint64Bytes(rest)
	if err != nil {
		return
	}
	switch kind {
	case publish:
		h.publish(member, id, rest)
	case join:
		h.join(member, joined, id, rest)
	case hello:
		h.hello(member, id)
	case ping:
		out := msgp.AppendUint64(msgp.AppendUint64(msgp.AppendArrayHeader(nil, 3), pong), id)
		member.Send(append(out, rest...))
	}
}

func (h *Hub[M]) hello(member M, id uint64) {
	body := msgp.AppendUint64(msgp.AppendUint64(msgp.AppendArrayHeader(nil, 3), welcome), id)
	body = msgp.AppendString(msgp.AppendMapHeader(body, 2), "session")
	body = msgp.AppendString(body, strconv.FormatUint(h.sessions.Add(1), 10))
	member.Send(msgp.AppendUint64(msgp.AppendString(body, "ping"), 30))
}

func (h *Hub[M]) join(member M, joined *Joined[M], id uint64, rest []byte) {
	name, _, err := msgp.ReadStringZC(rest)
	if err != nil {
		return
	}
	g := h.named(name)
	g.mutex.Lock()
	g.members[member] = struct{}{}
	offset := g.offset
	g.mutex.Unlock()
	joined.groups = append(joined.groups, g)
	member.Send(position(id, offset))
}

func (h *Hub[M]) publish(member M, id uint64, rest []byte) {
	name, data, err := msgp.ReadStringZC(rest)
	if err != nil {
		return
	}
	after, err := msgp.Skip(data)
	if err != nil {
		return
	}
	data = data[:len(data)-len(after)]
	g := h.named(name)
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.offset++
	body := msgp.AppendUint64(msgp.AppendArrayHeader(make([]byte, 0, len(data)+128), 5), message)
	body = msgp.AppendUint64(msgp.AppendString(body, g.name), g.offset)
	body = msgp.AppendMapHeader(append(body, data...), 3)
	body = msgp.AppendString(msgp.AppendString(body, "from"), "swarm-0")
	body = msgp.AppendInt64(msgp.AppendString(body, "time"), time.Now().UnixMilli())
	body = msgp.AppendUint64(msgp.AppendString(body, "epoch"), 1)
	member.Send(position(id, g.offset))
	h.Broadcast(g.members, body)
}

// Gone takes a member whose connection has ended out of its groups.
func (h *Hub[M]) Gone(member M, joined *Joined[M]) {
	for _, g := range joined.groups {
		g.mutex.Lock()
		delete(g.members, member)
		g.mutex.Unlock()
	}
}
