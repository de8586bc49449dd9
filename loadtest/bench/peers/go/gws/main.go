// A server on gws: `gws PORT`. A message is framed once by the library's broadcaster and queued at each connection.
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/lxzan/gws"
	"holdfast.test/peers/hub"
)

type member struct{ *gws.Conn }

func (m member) Send(body []byte) { m.WriteAsync(gws.OpcodeBinary, body, nil) }

type handler struct {
	gws.BuiltinEventHandler
	hub *hub.Hub[member]
}

const key = "joined"

func joined(socket *gws.Conn) *hub.Joined[member] {
	kept, _ := socket.Session().Load(key)
	return kept.(*hub.Joined[member])
}

func (h *handler) OnOpen(socket *gws.Conn) { socket.Session().Store(key, &hub.Joined[member]{}) }

func (h *handler) OnClose(socket *gws.Conn, _ error) { h.hub.Gone(member{socket}, joined(socket)) }

func (h *handler) OnMessage(socket *gws.Conn, message *gws.Message) {
	h.hub.Act(member{socket}, joined(socket), message.Bytes())
	_ = message.Close()
}

func broadcast(members map[member]struct{}, body []byte) {
	prepared := gws.NewBroadcaster(gws.OpcodeBinary, body)
	for one := range members {
		_ = prepared.Broadcast(one.Conn)
	}
	_ = prepared.Close()
}

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "gws:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	server := gws.NewServer(&handler{hub: hub.New(broadcast)}, nil)
	fmt.Fprintln(os.Stderr, "gws:", server.RunListener(listener))
	os.Exit(1)
}
